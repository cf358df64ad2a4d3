"""The migrations build what the tables say, can be taken back, and run safely side by side."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

from aios_broker.contract.errors import DatabaseUnavailable, InvalidConfig, KernelError
from aios_broker.postgres import migrate
from aios_broker.postgres.database import sqlalchemy_url
from aios_local.embedded.postgres import USER
from aios_workers.modules.tables import metadata
from tests.conftest import RunningPostgres


@pytest.fixture
def empty_url(postgres_server: RunningPostgres) -> Iterator[str]:
    """The address of a database without tables."""
    postgres_server.execute(f"CREATE DATABASE empty OWNER {USER}")
    yield postgres_server.server.database_url("empty")
    postgres_server.execute("DROP DATABASE empty WITH (FORCE)")


@pytest.fixture
def plain_owner_url(postgres_server: RunningPostgres) -> Iterator[str]:
    """The address of a database whose owner is no superuser, and may make roles."""
    for statement in (
        "CREATE ROLE plain LOGIN CREATEROLE",
        "GRANT aios_agent, aios_steward TO plain WITH ADMIN TRUE",
        "CREATE DATABASE plain OWNER plain",
    ):
        postgres_server.execute(statement)
    yield postgres_server.server.libpq_url("plain", "plain")
    postgres_server.execute("DROP DATABASE plain WITH (FORCE)")
    postgres_server.execute("DROP ROLE plain")


def differences(url: str) -> list[object]:
    engine = create_engine(sqlalchemy_url(url))
    with engine.connect() as connection:
        found = list(compare_metadata(MigrationContext.configure(connection), metadata))
    engine.dispose()
    return found


def tables(url: str) -> set[str]:
    engine = create_engine(sqlalchemy_url(url))
    found = set(inspect(engine).get_table_names())
    engine.dispose()
    return found


def revision_numbers() -> list[str]:
    scripts = ScriptDirectory(str(migrate.migrations_folder()))
    return [script.revision for script in scripts.walk_revisions()][::-1]


def test_migrations_build_exactly_the_tables(database_url: str) -> None:
    assert migrate.current(database_url) == migrate.head()
    assert differences(database_url) == []


def test_up_down_up(empty_url: str) -> None:
    applied = migrate.upgrade(empty_url)
    assert applied == [f"up to {number}" for number in revision_numbers()]
    assert migrate.downgrade(empty_url) == [
        f"down from {number}" for number in revision_numbers()[::-1]
    ]
    assert tables(empty_url) == {"alembic_version"}
    assert migrate.upgrade(empty_url) == applied
    assert differences(empty_url) == []


def test_a_second_upgrade_finds_nothing_to_do(empty_url: str) -> None:
    assert migrate.upgrade(empty_url)
    assert migrate.upgrade(empty_url) == []


def test_many_at_once_apply_each_migration_once(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        applied = [pool.submit(migrate.upgrade, empty_url) for _ in range(4)]
        outcomes = sorted((future.result() for future in applied), key=len)
    assert outcomes == [[], [], [], [f"up to {number}" for number in revision_numbers()]]


def test_a_table_that_somebody_locks_is_not_waited_for_for_ever(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_S", 1)
    migrate.upgrade(empty_url)
    with psycopg.connect(empty_url.replace("+psycopg", "")) as holder:
        holder.execute("LOCK TABLE syscall")
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            migrate.downgrade(empty_url)
    assert migrate.current(empty_url) == migrate.head()


def test_a_database_of_a_newer_release_is_left_alone(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    with psycopg.connect(empty_url.replace("+psycopg", "")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(KernelError, match="9999") as caught:
        migrate.upgrade(empty_url)
    assert "newer release" in str(caught.value.remedy)


def test_the_owner_need_not_be_a_superuser(plain_owner_url: str) -> None:
    assert migrate.upgrade(plain_owner_url)
    assert differences(plain_owner_url) == []
    assert migrate.downgrade(plain_owner_url)


def test_an_owner_that_may_not_make_roles_is_told_so(
    plain_owner_url: str, postgres_server: RunningPostgres
) -> None:
    postgres_server.execute("REVOKE aios_agent, aios_steward FROM plain")
    with pytest.raises(InvalidConfig, match="aios_agent, aios_steward") as caught:
        migrate.upgrade(plain_owner_url)
    assert "CREATEROLE" in str(caught.value.remedy)
    assert migrate.current(plain_owner_url) is None


def test_an_owner_that_may_not_make_the_extension_is_told_so(
    plain_owner_url: str, postgres_server: RunningPostgres
) -> None:
    as_superuser = postgres_server.superuser_url("plain")
    with psycopg.connect(as_superuser, autocommit=True) as connection:
        connection.execute("DROP EXTENSION vector")
    with pytest.raises(InvalidConfig) as caught:
        migrate.upgrade(plain_owner_url)
    assert "CREATE EXTENSION vector" in str(caught.value.remedy)


@pytest.mark.parametrize("version", [None, "0.7.4"])
def test_a_postgres_without_pgvector_is_told_so(
    empty_url: str, postgres_server: RunningPostgres, version: str | None
) -> None:
    with psycopg.connect(empty_url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE SCHEMA shadow")  # looked into before the catalogue
        connection.execute(
            "CREATE TABLE shadow.pg_available_extensions AS SELECT 'vector' AS name, "
            "%s::text AS installed_version, NULL::text AS default_version",
            (version,),
        )
    postgres_server.execute("ALTER DATABASE empty SET search_path = shadow, pg_catalog, public")
    with pytest.raises(InvalidConfig, match=version or "no extension") as caught:
        migrate.upgrade(empty_url)
    assert "install pgvector" in str(caught.value.remedy)
    assert migrate.current(empty_url) is None


def test_no_postgres_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        migrate.upgrade(f"postgresql://me:secret@/db?host={tmp_path}")
    assert caught.value.field == "AIOS_DATABASE_URL"
    assert "secret" not in str(caught.value)


def test_a_wrong_url_is_refused() -> None:
    with pytest.raises(InvalidConfig):
        migrate.upgrade("redis://localhost")


def test_each_migration_says_its_phase_locks_and_undo() -> None:
    for path in sorted((migrate.migrations_folder() / "versions").glob("*.py")):
        text = path.read_text()
        for word in ("Phase: ", "Locks: ", "Undo: "):
            assert word in text, f"{path.name} lacks {word!r}"
