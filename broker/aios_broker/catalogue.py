"""The cores that this machine's kernel is to have: `cores.toml`, read and checked.

The file lies in the state directory, or where AIOS_CORES says. Without one, or beside it, the
environment describes one more core: the default one where no core of the file is.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from aios_broker.contract.cores import CatalogueFile, Core, CoreSettings, check_cores
from aios_broker.contract.errors import InvalidConfig

FILE_NAME = "cores.toml"


def catalogue_path(state_dir: Path, named: Path | None) -> Path:
    """Return where the file lies, whether it is there or not."""
    return named if named is not None else state_dir / FILE_NAME


def read_catalogue(path: Path) -> dict[str, Core]:
    """Return the cores of a file by name; none where there is no file.

    Raises:
        InvalidConfig: it cannot be read, or describes what cannot be; `field` names the core.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error)) from error
    try:
        cores = msgspec.convert(tomllib.loads(text), CatalogueFile).cores
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise _unreadable(path, str(error)) from error
    check_cores(cores)
    return dict(cores)


def read_secret(core: CoreSettings, name: str, environ: Mapping[str, str]) -> str | None:
    """Return the key of a core's endpoint, from the variable or the file that it names.

    Raises:
        InvalidConfig: it names one that is not there, is empty, or has a line end within it. What
            was read is in no message.
    """
    variable = getattr(core, "api_key_env", None)
    file = getattr(core, "api_key_file", None)
    if variable is not None:
        found, field, where = environ.get(variable, ""), "api_key_env", f"variable {variable}"
    elif file is not None:
        found, field, where = _read_key_file(name, Path(file)), "api_key_file", f"file {file}"
    else:
        return None
    key = found.strip()
    if not key or any(not character.isprintable() or character == " " for character in key):
        raise InvalidConfig(
            f"the {where} holds {'a key of several lines or words' if key else 'no key'}",
            field=f"cores.{name}.{field}",
            remedy="let it hold the key and nothing else",
        )
    return key


def _read_key_file(name: str, path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(
            f"the key cannot be read: {type(error).__name__}",
            field=f"cores.{name}.api_key_file",
            remedy="name a file that this user may read",
        ) from error


def _unreadable(path: Path, why: str) -> InvalidConfig:
    return InvalidConfig(f"{path}: {why}", field=FILE_NAME, remedy="correct the file")
