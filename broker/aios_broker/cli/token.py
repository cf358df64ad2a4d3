"""`aios token`: an agent's token, for doors that do not vouch for who calls."""

from __future__ import annotations

import click

from aios_broker.cli.client import KernelClient
from aios_broker.cli.lookup import check_name
from aios_broker.cli.session import EXIT_CODES, CommandFailed, with_kernel
from aios_broker.cli.tables import show_json
from aios_broker.contract.errors import KernelError
from aios_broker.queues.tokens import Identity, Tokens


@click.command(epilog=EXIT_CODES)
@click.argument("agent")
@click.option("--tenant", default="default", show_default=True, help="Whose agent it is.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def token(agent: str, tenant: str, *, as_json: bool) -> None:
    """Issue a token for AGENT and print it, this once.

    A job that a stock RQ producer enqueues carries it; without it such a job is refused. The
    kernel keeps only a digest of it.
    """
    try:
        check_name("agent", agent)
        check_name("tenant", tenant)
    except KernelError as error:
        raise CommandFailed(error, as_json=as_json) from error

    async def issue(client: KernelClient) -> str:
        return await Tokens(client.connection, client.keys).issue(Identity(agent, tenant))

    issued = with_kernel(issue, as_json=as_json)
    if as_json:
        show_json({"agent": agent, "tenant": tenant, "token": issued})
    else:
        click.echo(issued)
