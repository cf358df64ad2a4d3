"""`aios agents suspend | resume`: stop an agent, or a whole tenant, at once."""

import contextlib
import getpass
from collections.abc import AsyncIterator
from dataclasses import dataclass

import click

from aios_broker.access.suspensions import go_on
from aios_broker.access.suspensions import suspend as suspend_subject
from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.names import check_name
from aios_broker.postgres.store import Store
from aios_broker.queues.quota import Subject
from aios_cli.session import Operator, command, current_config, database_url
from aios_cli.tables import say


@dataclass(frozen=True, slots=True)
class Stopped:
    """An agent or a tenant after it was suspended, or let go on."""

    tenant: str
    agent: str  # empty: the whole tenant
    suspended: bool
    ended: int  # its syscalls that were alive

    @property
    def words(self) -> str:
        """Return it as people say it."""
        return f"agent {self.tenant}/{self.agent}" if self.agent else f"tenant {self.tenant}"


def _show(done: Stopped) -> None:
    if done.suspended:
        say(f"{done.words} is suspended; {done.ended} of its syscalls were ended")
    else:
        say(f"{done.words} may go on")


def _subject(agent: str | None, tenant: str | None) -> Subject:
    if agent is None and tenant is None:
        raise click.UsageError("name an agent, or a tenant with --tenant")
    for field, value in (("agent", agent), ("tenant", tenant)):
        if value is not None:
            check_name(field, value)
    whose = tenant or "default"
    return Subject.of_tenant(whose) if agent is None else Subject.of_agent(agent, whose)


_agent = click.argument("agent", required=False)
_tenant = click.option("--tenant", help="The agent's tenant; without AGENT, all of the tenant.")


@command(_show)
@_agent
@_tenant
async def suspend(operator: Operator, agent: str | None, tenant: str | None) -> Stopped:
    """Stop AGENT, or a tenant, at once: what it asks is refused, what waits or runs of it ends.

    Each syscall that was alive is answered with agent-suspended. Its notes, files and tokens stay;
    it goes on with `aios agents resume`.

    \b
    Examples:
      aios agents suspend ada
      aios agents suspend --tenant acme
    """  # noqa: D301 - \b keeps click from wrapping
    subject = _subject(agent, tenant)
    who = _at_the_keyboard()
    async with _opened_store() as store:
        ended = await suspend_subject(store, operator.control, subject, who=who)
    return Stopped(subject.tenant, subject.agent, suspended=True, ended=ended)


@command(_show)
@_agent
@_tenant
async def resume(operator: Operator, agent: str | None, tenant: str | None) -> Stopped:
    """Let AGENT, or a tenant, that was suspended go on; it sends again what it still wants."""
    subject = _subject(agent, tenant)
    async with _opened_store() as store:
        await go_on(store, operator.control, subject, who=_at_the_keyboard())
    return Stopped(subject.tenant, subject.agent, suspended=False, ended=0)


@contextlib.asynccontextmanager
async def _opened_store() -> AsyncIterator[Store | None]:
    """Yield the kernel's database; None: it keeps none, and Redis alone has who is suspended.

    Where the audit log's key cannot be read the switch works all the same, and says so.
    """
    try:
        url = database_url()
    except InvalidConfig:
        yield None
        return
    try:
        key = current_config().audit_folder.key()
    except InvalidConfig:
        key = None
    async with contextlib.aclosing(Store(url, name="aios-cli", audit_key=key)) as store:
        yield store


def _at_the_keyboard() -> str:
    try:
        return getpass.getuser()
    except OSError:  # a uid without a name, as in containers
        return "?"
