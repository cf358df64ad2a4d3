"""`aios token`: an agent's token, for doors that do not vouch for who calls."""

from __future__ import annotations

import click

from aios_broker.cli.approvals import operator, with_store
from aios_broker.cli.client import KernelClient
from aios_broker.cli.lookup import check_name
from aios_broker.cli.session import EXIT_CODES, CommandFailed, with_kernel
from aios_broker.cli.tables import show_json
from aios_broker.contract.errors import KernelError
from aios_broker.queues.tokens import Identity, Tokens, digest
from aios_broker.store.audit import AuditLine, append_line
from aios_broker.store.session import Store
from aios_broker.store.tokens import put_token


@click.command(epilog=EXIT_CODES)
@click.argument("agent")
@click.option("--tenant", default="default", show_default=True, help="Whose agent it is.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def token(agent: str, tenant: str, *, as_json: bool) -> None:
    """Issue a token for AGENT and print it, this once.

    A job that a stock RQ producer enqueues carries it; without it such a job is refused. The
    kernel keeps only a digest of it, in Redis and in its database.
    """
    try:
        check_name("agent", agent)
        check_name("tenant", tenant)
    except KernelError as error:
        raise CommandFailed(error, as_json=as_json) from error

    issued = Tokens.new()
    with_store(lambda store: _enter(store, issued, agent, tenant), as_json=as_json)

    async def put(client: KernelClient) -> None:
        await Tokens(client.connection, client.keys).put(issued, Identity(agent, tenant))

    with_kernel(put, as_json=as_json)
    if as_json:
        show_json({"agent": agent, "tenant": tenant, "token": issued})
    else:
        click.echo(issued)


async def _enter(store: Store, issued: str, agent: str, tenant: str) -> None:
    whose = await store.vouched(agent, tenant)
    async with store.as_steward() as cursor:
        await put_token(cursor, whose.id, digest(issued), None)
        await append_line(cursor, AuditLine(
            tenant, operator(), "access.token", f"agent {agent}", "done"
        ))  # fmt: skip
