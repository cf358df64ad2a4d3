"""How Alembic reaches the database: by the connection of `aios_broker.postgres.migrate`.

For Alembic's own commands in a checkout (`alembic revision`, `alembic history`) the database is
that of AIOS_DATABASE_URL.
"""

import os
from typing import Any

from alembic import context
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from aios_broker.postgres.database import sqlalchemy_url
from aios_workers.modules.tables import metadata  # the ledger's tables and its own


def configure(**options: Any) -> None:  # noqa: ANN401 - whatever Alembic takes
    """Say what all runs have in common."""
    context.configure(
        target_metadata=metadata,
        # A migration that fails takes nothing of those before it back.
        transaction_per_migration=True,
        on_version_apply=context.config.attributes.get("on_version_apply"),
        **options,
    )


def run_on(connection: Connection) -> None:
    """Migrate over a connection that is open already."""
    configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    """Run the migrations, or print their SQL."""
    handed_over = context.config.attributes.get("connection")
    if handed_over is not None:
        run_on(handed_over)
    elif context.is_offline_mode():
        configure(dialect_name="postgresql", literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
    else:
        url = sqlalchemy_url(os.environ["AIOS_DATABASE_URL"])
        with create_engine(url, poolclass=NullPool).connect() as connection:
            run_on(connection)
            connection.commit()


main()
