"""`aios token`: an agent's token, for doors that do not vouch for who calls."""

from __future__ import annotations

import click

from aios_broker.contract.errors import InvalidConfig, KernelError
from aios_broker.queues.tokens import Identity, Tokens, digest
from aios_cli.approvals import kernel_store, operator
from aios_cli.lookup import check_name
from aios_cli.operator import Operator
from aios_cli.session import EXIT_CODES, CommandFailed, with_kernel
from aios_cli.tables import show_json
from aios_workers.modules.access.audit import AuditLine, append_line
from aios_workers.modules.access.tokens import put_token


@click.command(epilog=EXIT_CODES)
@click.argument("agent")
@click.option("--tenant", default="default", show_default=True, help="Whose agent it is.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def token(agent: str, tenant: str, *, as_json: bool) -> None:
    """Issue a token for AGENT and print it, this once.

    A job that a stock RQ producer enqueues carries it; without it such a job is refused. The
    kernel keeps only a digest of it, in Redis and, where AIOS_DATABASE_URL or the running kernel
    names one, in its database, from where a Redis that was emptied gets it back.
    """
    try:
        check_name("agent", agent)
        check_name("tenant", tenant)
    except KernelError as error:
        raise CommandFailed(error, as_json=as_json) from error

    issued = Tokens.new()

    async def put(operator: Operator) -> None:
        await _enter(issued, agent, tenant)
        await Tokens(operator.connection, operator.keys).put(issued, Identity(agent, tenant))

    with_kernel(put, as_json=as_json)
    if as_json:
        show_json({"agent": agent, "tenant": tenant, "token": issued})
    else:
        click.echo(issued)


async def _enter(issued: str, agent: str, tenant: str) -> None:
    try:
        store = kernel_store()
    except InvalidConfig:  # a kernel without a database: Redis alone has its tokens
        return
    try:
        whose = await store.vouched(agent, tenant)
        async with store.as_steward() as cursor:
            await put_token(cursor, whose.id, digest(issued), None)
            await append_line(
                cursor, AuditLine(tenant, operator(), "access.token", f"agent {agent}", "done")
            )
    finally:
        await store.aclose()
