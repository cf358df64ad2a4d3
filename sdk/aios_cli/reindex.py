"""`aios reindex`: embed all notes and files anew, by the model that the settings name."""

from __future__ import annotations

import subprocess
import sys

import click

from aios_broker.config import environment
from aios_cli.session import EXIT_CODES
from aios_cli.settings import current_config, find_kernel


@click.command(epilog=EXIT_CODES)
def reindex() -> None:
    """Embed all notes and files anew, by the model of AIOS_EMBEDDING_MODEL or _CORE.

    The kernel goes on meanwhile; run it again where it was stopped. Afterwards restart the workers
    of memory and storage with the same settings.
    """
    config = current_config()
    redis_url, database_url = config.redis_url, config.database_url
    if redis_url is None or database_url is None:
        record = find_kernel()
        redis_url, database_url = redis_url or record.redis_url, database_url or record.database_url
    variables = {**environment(), **config.variables(), "AIOS_REDIS_URL": redis_url}
    if database_url is not None:
        variables["AIOS_DATABASE_URL"] = database_url
    # The workers' package has the models; the broker does not import it.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "aios_workers.search"], env=variables, check=False
    )
    raise SystemExit(done.returncode)
