"""Who holds what: tokens, groups, grants; and what the operator says of agents and tenants."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from aios_broker.access.grants import KnownGrant, KnownGroup, known_grants, known_groups
from aios_broker.access.rights import KnownAgent, Right, known_agents
from aios_broker.access.suspensions import go_on, suspend
from aios_broker.access.tokens import KnownToken, known_tokens
from aios_broker.contract.names import AgentName, Owner, TenantName
from aios_broker.queues.quota import Subject
from aios_broker.views.settings import give_right
from aios_kernel_api.operations import Answer, Asked, NoQuery, Operation, route_of
from aios_kernel_api.rest.access import cursor_of, no_place, number_in, place_in
from aios_kernel_api.rest.views import OwnerQuery, Page, cut_page, tenant_of, whose_of

OPERATOR = "operator:"
Tenant = Annotated[TenantName, Meta(description="whose agent it is")]


class TokenQuery(OwnerQuery, frozen=True, kw_only=True):
    """Which tokens; `over`: revoked or expired, within two days."""

    state: Literal["good", "over"] = "good"


class OneAgent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An agent, by name."""

    agent: AgentName
    tenant: Tenant = "default"


class RightSetting(OneAgent, frozen=True, kw_only=True):
    """Which right an agent has from now on, or no longer."""

    right: Right
    given: bool


class SuspensionRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An agent; without a name, its whole tenant."""

    tenant: TenantName
    agent: AgentName | None = None

    @property
    def subject(self) -> Subject:
        """Return whom it is about."""
        if self.agent is None:
            return Subject.of_tenant(self.tenant)
        return Subject.of_agent(self.agent, self.tenant)


class SuspensionQuery(SuspensionRequest, frozen=True, kw_only=True):
    """Who goes on."""


class Suspension(Struct, frozen=True):
    """Who may ask nothing until an operator lets it go on."""

    tenant: str
    agent: str | None  # None: the whole tenant
    by: str


class Suspended(Struct, frozen=True):
    """How many syscalls were alive, and were ended."""

    ended: int


class SuspensionEnd(Struct, frozen=True):
    """Whether it was suspended."""

    changed: bool


async def tokens(asked: Asked[TokenQuery, None]) -> Page[KnownToken]:
    """Return tokens that are good, or those that are over."""
    query = asked.query
    whose = whose_of(asked.caller, query.tenant, query.agent)
    after = None
    if query.after is not None:
        tenant, of_agent = place_in(query.after)
        agent, slash, token = of_agent.rpartition("/")
        if not slash:
            raise no_place()
        after = tenant, agent, token
    async with asked.kernel.needed_store.as_steward() as cursor:
        found = await known_tokens(
            cursor,
            whose.tenant,
            whose.agent,
            limit=query.limit + 1,
            after=after,
            good=query.state == "good",
        )
    return cut_page(found, query.limit, lambda one: f"{one.tenant}/{one.agent}/{one.id}")


async def groups(asked: Asked[OwnerQuery, None]) -> Page[KnownGroup]:
    """Return privilege groups, with their members."""
    query = asked.query
    tenant = tenant_of(asked.caller, query.tenant)
    after = None if query.after is None else place_in(query.after)
    async with cursor_of(asked.kernel, asked.caller) as cursor:
        found = await known_groups(cursor, tenant, query.agent, limit=query.limit + 1, after=after)
    return cut_page(found, query.limit, lambda one: f"{one.tenant}/{one.name}")


async def grants(asked: Asked[OwnerQuery, None]) -> Page[KnownGrant]:
    """Return grants that hold."""
    query = asked.query
    tenant = tenant_of(asked.caller, query.tenant)
    before = None if query.after is None else number_in(query.after)
    async with cursor_of(asked.kernel, asked.caller) as cursor:
        found = await known_grants(
            cursor, tenant, query.agent, limit=query.limit + 1, before=before
        )
    return cut_page(found, query.limit, lambda one: str(one.id))


async def set_right(asked: Asked[NoQuery, RightSetting]) -> KnownAgent:
    """Give an agent a right, or take it away."""
    store, body = asked.kernel.needed_store, asked.body
    whose = Owner(body.tenant, body.agent)
    await give_right(store, whose, body.right, who=asked.caller.agent, given=body.given)
    async with store.as_steward() as cursor:
        [agent] = await known_agents(cursor, body.tenant, body.agent)
    return agent


async def suspensions(asked: Asked[NoQuery, None]) -> Page[Suspension]:
    """Return who is suspended."""
    stopped = await asked.kernel.control.stopped()
    lines = [Suspension(one.tenant, one.agent or None, by) for one, by in stopped.items()]
    return Page(sorted(lines, key=lambda one: (one.tenant, one.agent or "")))


async def stop(asked: Asked[NoQuery, SuspensionRequest]) -> Suspended:
    """Suspend an agent or a tenant: what it asks is refused, what is alive of it ends."""
    kernel, who = asked.kernel, asked.caller.agent.removeprefix(OPERATOR)
    return Suspended(await suspend(kernel.store, kernel.control, asked.body.subject, who=who))


async def let_go_on(asked: Asked[SuspensionQuery, None]) -> SuspensionEnd:
    """Let an agent or a tenant go on."""
    kernel, who = asked.kernel, asked.caller.agent.removeprefix(OPERATOR)
    return SuspensionEnd(await go_on(kernel.store, kernel.control, asked.query.subject, who=who))


OPERATIONS = (
    (
        Operation(
            method="GET",
            path="/v1/tokens",
            tag="Access",
            words="List tokens that are good, without the tokens themselves",
            more="They are made and taken back by agents' syscalls, and on the kernel's machine. "
            "`state=over`: those that were revoked or have expired, for two days.",
            scope="agent",
            query=TokenQuery,
            answers={200: Answer(words="Tokens, by agent", kind=Page[KnownToken])},
            errors=(404,),
        ),
        tokens,
    ),
    (
        Operation(
            method="GET",
            path="/v1/groups",
            tag="Access",
            words="List privilege groups of your tenant, with their members",
            more="`agent`: those that it is in.",
            scope="agent",
            query=OwnerQuery,
            answers={200: Answer(words="Groups, by name", kind=Page[KnownGroup])},
            errors=(404,),
        ),
        groups,
    ),
    (
        Operation(
            method="GET",
            path="/v1/grants",
            tag="Access",
            words="List grants that concern you; for an operator all",
            more="`agent`: of what it owns, gave, or has, itself or by a group.",
            scope="agent",
            query=OwnerQuery,
            answers={200: Answer(words="Grants, newest first", kind=Page[KnownGrant])},
            errors=(404,),
        ),
        grants,
    ),
    (
        Operation(
            method="PUT",
            path="/v1/rights",
            tag="Access",
            words="Let an agent administer its tenant or decide for others, or no longer",
            scope="operator",
            body=RightSetting,
            body_example={"agent": "ada", "right": "decide", "given": True},
            answers={200: Answer(words="The agent as it is now", kind=KnownAgent)},
        ),
        set_right,
    ),
    (
        Operation(
            method="GET",
            path="/v1/suspensions",
            tag="Access",
            words="List agents and tenants that are suspended",
            scope="operator",
            answers={200: Answer(words="Them, by name", kind=Page[Suspension])},
        ),
        suspensions,
    ),
    (
        Operation(
            method="PUT",
            path="/v1/suspensions",
            tag="Access",
            words="Suspend an agent or a tenant: what it asks is refused, what is alive of it ends",
            scope="operator",
            body=SuspensionRequest,
            body_example={"tenant": "default", "agent": "ada"},
            answers={200: Answer(words="How much was ended", kind=Suspended)},
        ),
        stop,
    ),
    (
        Operation(
            method="DELETE",
            path="/v1/suspensions",
            tag="Access",
            words="Let an agent or a tenant go on",
            scope="operator",
            query=SuspensionQuery,
            answers={200: Answer(words="Whether it was suspended", kind=SuspensionEnd)},
        ),
        let_go_on,
    ),
)
ROUTES = [route_of(operation, handler) for operation, handler in OPERATIONS]
