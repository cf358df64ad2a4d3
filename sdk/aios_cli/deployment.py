"""`aios secrets`: what a fleet's containers are given by file, each its own."""

import os
import secrets as random
from pathlib import Path

import click

from aios_broker.config import KernelConfig
from aios_broker.contract.errors import InvalidConfig
from aios_broker.queues.keys import Keys
from aios_broker.queues.users import ROLES, acl_file, url_as
from aios_cli.session import current_config
from aios_cli.tables import say

PASSWORD_BYTES = 32
FOLDER_MODE = 0o700
# An engine hands files on with their owner and mode, and processes in containers are other users
# than this one: what keeps others of this machine out is the folder.
FILE_MODE = 0o644


@click.command("secrets")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--redis", metavar="HOST:PORT", default="redis:6379", show_default=True)
@click.option("--postgres", metavar="HOST:PORT", default="postgres:5432", show_default=True)
def secrets(folder: Path, redis: str, postgres: str) -> None:
    """Write the secrets of a fleet into a folder: passwords, addresses, Redis' users.

    docker-compose.yml gives each service its own of them. Passwords that are there already stay:
    delete `redis_password` or `postgres_password` for new ones. redis_users.acl is what a Redis
    of yours takes as its `aclfile`; RQ_KEY_PREFIX is minded.

    \b
    Examples:
      aios secrets deploy/secrets
      aios secrets secrets --redis redis.internal:6379 --postgres db.internal:5432
    """  # noqa: D301 - \b keeps click from wrapping
    written = write_secrets(folder, current_config(), redis=redis, postgres=postgres)
    say(f"{folder}: {', '.join(written)}")


def write_secrets(folder: Path, config: KernelConfig, *, redis: str, postgres: str) -> list[str]:
    """Write them; return the names of the files.

    Raises:
        InvalidConfig: the folder cannot be written, or others may enter it.
    """
    keys = Keys(config.key_prefix)
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        folder.chmod(FOLDER_MODE)
        redis_password = _kept(folder / "redis_password")
        postgres_password = _kept(folder / "postgres_password")
        operator = f"redis://:{redis_password}@{redis}/0"
        texts = {
            "redis_password": redis_password,
            "postgres_password": postgres_password,
            "redis_users.acl": acl_file(redis_password, keys),
            "redis_url_operator": operator,
            **{f"redis_url_{role}": url_as(operator, role, keys) for role in ROLES},
            "database_url": f"postgresql://aios:{postgres_password}@{postgres}/aios",
        }
        for name, text in texts.items():
            _write(folder / name, text)
    except OSError as error:
        raise InvalidConfig(
            f"{error.filename or folder} cannot be written: {error.strerror}",
            field="FOLDER",
            remedy="name a folder of your own",
        ) from error
    return list(texts)


def _kept(path: Path) -> str:
    """Return a password that a file has, else a new one: hexadecimal, for any place of a URL."""
    try:
        found = path.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return random.token_hex(PASSWORD_BYTES)
    if not found.isalnum():
        raise InvalidConfig(
            f"{path} holds what does not fit into an address",
            field="FOLDER",
            remedy="write a password of letters and digits into it, or delete it for a new one",
        )
    return found


def _write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    building = path.with_name(f".{path.name}.new")
    building.write_text(text.strip() + "\n", encoding="utf-8")
    os.chmod(building, FILE_MODE)
    building.replace(path)
