"""Bring the database's tables to this release: from a checkout or from an installed wheel.

Safe to run by many at once: they take turns, and those that come later find nothing to do.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

import aios_broker
from aios_broker.contract.errors import KernelError
from aios_broker.postgres.database import (
    CONNECT_TIMEOUT_S,
    LOCK_TIMEOUT_S,
    database_errors,
    sqlalchemy_url,
)

logger = logging.getLogger(__name__)

# Any number, the same for all releases: who holds it migrates.
ADVISORY_LOCK = 0x4149_4F53
TURN_TIMEOUT_S = 120  # for another process that migrates
STATEMENT_TIMEOUT_S = 30  # of one statement; a migration that needs longer says so itself


def migrations_folder() -> Path:
    """Return where the migrations lie: beside the package in a checkout, inside it in a wheel."""
    package = Path(aios_broker.__file__).resolve().parent
    candidates = (package / "migrations", package.parents[1] / "migrations")
    for folder in candidates:
        if (folder / "env.py").is_file():
            return folder
    raise KernelError(
        f"the migrations are in none of {', '.join(map(str, candidates))}",
        remedy="install the package anew",
    )


def upgrade(database_url: str, revision: str = "head") -> list[str]:
    """Bring the database to `revision`; return what was applied, oldest first.

    Raises:
        InvalidConfig: the URL is not one of a Postgres.
        DatabaseUnavailable: no answer, or a lock that was not given in time.
        KernelError: the database is of a newer release.
    """
    return _migrate(database_url, lambda config: command.upgrade(config, revision))


def downgrade(database_url: str, revision: str = "base") -> list[str]:
    """Take the database back to `revision`; what only later releases keep is lost."""
    return _migrate(database_url, lambda config: command.downgrade(config, revision))


def current(database_url: str) -> str | None:
    """Return the revision of the database, None for an empty one."""
    with _connected(database_url) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head() -> str | None:
    """Return the newest revision of this release."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _migrate(database_url: str, step: Callable[[Config], None]) -> list[str]:
    config = _config()
    applied: list[str] = []
    with _connected(database_url) as connection:
        _take_turn(connection)
        config.attributes["connection"] = connection
        config.attributes["on_version_apply"] = lambda **told: applied.append(_name(told["step"]))
        try:
            step(config)
        except CommandError as error:
            raise KernelError(
                f"the database cannot be migrated: {error}",
                remedy="a newer release has migrated it: use that one",
            ) from error
        connection.commit()
    for name in applied:
        logger.info("migrated: %s", name)
    return applied


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    return config


@contextmanager
def _connected(database_url: str) -> Iterator[Connection]:
    engine = create_engine(
        sqlalchemy_url(database_url),
        poolclass=NullPool,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "aios-migrate"},
    )
    try:
        with database_errors(database_url), engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        with database_errors(database_url):
            raise error.orig or error from error
    finally:
        engine.dispose()


def _take_turn(connection: Connection) -> None:
    """Wait for whoever migrates now. The lock ends with the connection."""
    connection.execute(text(f"SET lock_timeout = '{TURN_TIMEOUT_S}s'"))
    connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": ADVISORY_LOCK})
    # A migration that cannot have its table at once must not make everybody queue behind it.
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'"))
    connection.execute(text(f"SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'"))
    connection.commit()


def _name(step: object) -> str:
    revision = getattr(step, "up_revision_id", "?")
    return f"{'up to' if getattr(step, 'is_upgrade', True) else 'down from'} {revision}"
