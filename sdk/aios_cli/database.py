"""`aios migrate | reindex`: what is done to the kernel's database."""

import contextlib
import subprocess
import sys

import click

from aios_broker.config import environment
from aios_broker.contract.errors import InvalidConfig
from aios_broker.postgres.database import without_password
from aios_broker.postgres.migrate import current, upgrade
from aios_cli.session import EXIT_CODES, current_config, database_url, find_kernel
from aios_cli.tables import show_json


@click.command(epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def migrate(*, as_json: bool) -> None:
    """Bring the database to this version: make and change its tables.

    The database is that of AIOS_DATABASE_URL, else that of the running kernel (`aios up` migrates
    its own by itself). Safe to run again, and by many at once.
    """
    url = database_url()
    applied = upgrade(url)
    revision = current(url)
    if as_json:
        show_json({"revision": revision, "applied": applied})
        return
    for step in applied:
        click.echo(f"migrated {step}")
    click.echo(f"{without_password(url)} is at revision {revision}")


@click.command(epilog=EXIT_CODES)
def reindex() -> None:
    """Embed all notes and files anew, by the model of AIOS_EMBEDDING_MODEL or _CORE.

    The kernel goes on meanwhile; run it again where it was stopped. Afterwards restart the workers
    of memory and storage with the same settings.
    """
    config = current_config()
    variables = {**environment(), **config.variables(), "AIOS_REDIS_URL": find_kernel().redis_url}
    with contextlib.suppress(InvalidConfig):  # the program says what it lacks
        variables["AIOS_DATABASE_URL"] = database_url()
    # The workers' package has the models; the broker does not import it.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "aios_workers.search"], env=variables, check=False
    )
    raise SystemExit(done.returncode)
