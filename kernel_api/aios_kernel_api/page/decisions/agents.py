"""Agents: what each may do, holds and shares; and what the operator says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aios_broker.access.holdings import KnownGrant, KnownGroup
from aios_broker.access.rights import KnownAgent
from aios_broker.access.tokens import KnownToken
from aios_broker.contract.errors import UnknownAgent
from aios_kernel_api.identity import Caller
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.page.rest import ask
from aios_kernel_api.rest import access, rights, settings
from aios_kernel_api.rest.rights import Suspension
from aios_kernel_api.rest.settings import QuotaLine
from aios_kernel_api.rest.views import Page

PAGE_LENGTH = 50


@dataclass(frozen=True, slots=True)
class AgentList:
    """A page of agents, and who is suspended; only an operator is told of that."""

    agents: Page[KnownAgent]
    suspensions: Sequence[Suspension]

    def is_suspended(self, agent: KnownAgent) -> bool:
        """Whether an agent may ask nothing, for itself or with its tenant."""
        return any(
            one.tenant == agent.tenant and one.agent in (None, agent.name)
            for one in self.suspensions
        )


@dataclass(frozen=True, slots=True)
class OneAgent:
    """An agent, and the first of all that it holds."""

    agent: KnownAgent
    suspensions: Sequence[Suspension]  # its own and its tenant's
    tokens: Page[KnownToken]
    groups: Page[KnownGroup]
    grants: Page[KnownGrant]
    quotas: Sequence[QuotaLine]


async def agents(kernel: Kernel, caller: Caller, query: Mapping[str, str]) -> AgentList:
    """Return a page of agents."""
    found = await ask(kernel, caller, access.agents, query=_page(query))
    return AgentList(found, await _suspensions(kernel, caller))


async def agent(kernel: Kernel, caller: Caller, tenant: str, name: str) -> OneAgent:
    """Return one agent.

    Raises:
        UnknownAgent: there is none, or none that the caller may know of.
    """
    whose = {"tenant": tenant, "agent": name}
    known = await ask(kernel, caller, access.agents, query=whose)
    if not known.items:
        raise UnknownAgent(
            f"tenant {tenant!r} has no agent {name!r}",
            field="agent",
            remedy="it becomes known by its first syscall, a token, or a right",
        )
    first = {**whose, "limit": str(PAGE_LENGTH)}
    quotas = await ask(kernel, caller, settings.quotas)
    return OneAgent(
        known.items[0],
        [
            one
            for one in await _suspensions(kernel, caller)
            if one.tenant == tenant and one.agent in (None, name)
        ],
        await ask(kernel, caller, rights.tokens, query=first),
        await ask(kernel, caller, rights.groups, query=first),
        await ask(kernel, caller, rights.grants, query=first),
        [one for one in quotas.items if _concerns(one, tenant, name)],
    )


async def tokens(kernel: Kernel, caller: Caller, query: Mapping[str, str]) -> Page[KnownToken]:
    """Return a page of tokens that are good."""
    return await ask(kernel, caller, rights.tokens, query=_page(query))


async def groups(kernel: Kernel, caller: Caller, query: Mapping[str, str]) -> Page[KnownGroup]:
    """Return a page of privilege groups."""
    return await ask(kernel, caller, rights.groups, query=_page(query))


async def grants(kernel: Kernel, caller: Caller, query: Mapping[str, str]) -> Page[KnownGrant]:
    """Return a page of grants."""
    return await ask(kernel, caller, rights.grants, query=_page(query))


async def suspend(kernel: Kernel, caller: Caller, form: Mapping[str, str]) -> str:
    """Suspend an agent or a tenant; return what was done, in words."""
    subject = _subject(form)
    done = await ask(kernel, caller, rights.stop, body=subject)
    return f"suspended; {done.ended} of its syscalls were ended"


async def let_go_on(kernel: Kernel, caller: Caller, form: Mapping[str, str]) -> str:
    """Let an agent or a tenant go on; return what was done, in words."""
    done = await ask(kernel, caller, rights.let_go_on, query=_subject(form))
    return "it goes on" if done.changed else "it was not suspended"


async def set_right(kernel: Kernel, caller: Caller, form: Mapping[str, str]) -> str:
    """Give a right or take it away; return what was done, in words."""
    given = form.get("given") == "true"
    names = ("tenant", "agent", "right")
    body: dict[str, object] = {name: form.get(name, "") for name in names}
    await ask(kernel, caller, rights.set_right, body={**body, "given": given})
    return f"it may {'now' if given else 'no longer'} {body['right']}"


def _page(query: Mapping[str, str]) -> dict[str, str]:
    wanted = {name: query.get(name, "") for name in ("tenant", "agent", "after")}
    return {**wanted, "limit": str(PAGE_LENGTH)}


def _subject(form: Mapping[str, str]) -> dict[str, object]:
    named = {"tenant": form.get("tenant", ""), "agent": form.get("agent", "")}
    return {name: value for name, value in named.items() if value}


async def _suspensions(kernel: Kernel, caller: Caller) -> Sequence[Suspension]:
    if caller.scope != "operator":
        return ()
    return (await ask(kernel, caller, rights.suspensions)).items


def _concerns(line: QuotaLine, tenant: str, name: str) -> bool:
    """Tell whether a quota says something of an agent."""
    subject = line.quota.subject
    if "*" in (subject.tenant, subject.agent):
        return True
    return subject.tenant == tenant and subject.agent in ("", name)
