"""`aios migrate`: bring the database to this version."""

from __future__ import annotations

import click

from aios_broker.contract.errors import InvalidConfig, KernelError
from aios_broker.postgres.database import without_password
from aios_broker.postgres.migrate import current, upgrade
from aios_cli.session import EXIT_CODES, CommandFailed
from aios_cli.settings import current_config, find_kernel
from aios_cli.tables import show_json


@click.command(epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def migrate(*, as_json: bool) -> None:
    """Bring the database to this version: make and change its tables.

    The database is that of AIOS_DATABASE_URL, else that of the running kernel (`aios up` migrates
    its own by itself). Safe to run again, and by many at once.
    """
    try:
        database_url = _database_url()
        applied = upgrade(database_url)
        revision = current(database_url)
    except KernelError as error:
        raise CommandFailed(error, as_json=as_json) from error
    if as_json:
        show_json({"revision": revision, "applied": applied})
        return
    for step in applied:
        click.echo(f"migrated {step}")
    click.echo(f"{without_password(database_url)} is at revision {revision}")


def _database_url() -> str:
    database_url = current_config().database_url or find_kernel().database_url
    if database_url is None:
        raise InvalidConfig(
            "the kernel keeps no database", field="AIOS_DATABASE_URL", remedy="set it"
        )
    return database_url
