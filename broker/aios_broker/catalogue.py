"""The cores that this machine's kernel is to have: `cores.toml`, read and checked.

The file lies in the state directory, or where AIOS_CORES says. Without one, or beside it, the
environment describes one more core: the default one where no core of the file is.
"""

import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from aios_broker.contract.cores import Core, CoreName, CoreSettings, check_core, check_cores
from aios_broker.contract.errors import InvalidConfig

Stamp = tuple[int, int, int] | None  # inode, time of change in ns, size; None: no file

FILE_NAME = "cores.toml"
TABLE = "cores"
# Where msgspec says that something is wrong, and what tomllib says of a table that comes twice.
_AT = re.compile(r" - at `\$\.?([^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `([^`]+)`")
# Who holds a key, whatever else is wrong with the file, also in a comment: an entry to come.
_KEY_VARIABLE = re.compile(r"""api_key_env["']?\s*=\s*["']([A-Za-z_][A-Za-z0-9_]*)["']""")
_TWICE = re.compile(r"Cannot declare \('cores', '([^']+)'\) twice")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a file says: the cores that can be run, and what is wrong with the others."""

    cores: Mapping[str, Core] = field(default_factory=dict)
    # By core; what is wrong with the file as a whole stands under its own name.
    problems: Mapping[str, InvalidConfig] = field(default_factory=dict)
    key_variables: frozenset[str] = frozenset()  # that entries name, right ones and wrong ones

    def one(self, name: str) -> Core:
        """Return a core, whatever is wrong with others.

        Raises:
            InvalidConfig: It is wrong, or is not there.
        """
        for wrong in (name, FILE_NAME):
            if wrong in self.problems:
                raise self.problems[wrong]
        if name not in self.cores:
            known = ", ".join(self.cores)
            raise InvalidConfig(
                f"there is no core {name!r} in {FILE_NAME}",
                field=f"{TABLE}.{name}",
                remedy=f"use of {known}" if known else "add it with `aios cores add`",
            )
        return self.cores[name]

    @property
    def has_default(self) -> bool:
        """Whether one of the cores that can be run takes what names none."""
        return any(core.default for core in self.cores.values())

    def checked(self) -> dict[str, Core]:
        """Return all cores.

        Raises:
            InvalidConfig: One is wrong; the first of them.
        """
        for problem in self.problems.values():
            raise problem
        return dict(self.cores)


def catalogue_path(state_dir: Path, named: Path | None) -> Path:
    """Return where the file lies, whether it is there or not."""
    return (named if named is not None else state_dir / FILE_NAME).expanduser()


def cores_source(path: Path) -> str:
    """Return how the fleet calls this file, and the environment beside it."""
    return f"{socket.gethostname()}:{path}"


def read_catalogue(path: Path) -> Catalogue:
    """Return what a file says; nothing where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Catalogue()
    except (OSError, UnicodeDecodeError) as error:
        return _unreadable(f"{path} cannot be read: {error}")
    return parse_catalogue(text)


def file_stamp(path: Path) -> Stamp:
    """Return what is another one when a file is."""
    try:
        found = path.stat()
    except OSError:  # it is not there, or cannot be seen: reading it says which
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def parse_catalogue(text: str) -> Catalogue:
    """Return what the text of a file says."""
    found = _parsed(text)
    return replace(found, key_variables=frozenset(_KEY_VARIABLE.findall(text)))


def _parsed(text: str) -> Catalogue:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        if twice := _TWICE.search(str(error)):
            where = str(error)[twice.end() :].strip()
            return _unreadable("is described twice " + where, f"{TABLE}.{twice[1]}")
        return _unreadable(f"is no TOML: {error}")
    tables = data.pop(TABLE, {})
    if data or not isinstance(tables, dict):
        strange = next(iter(data), TABLE)
        return _unreadable(f"{strange!r} is no core", remedy="give each a table [cores.NAME]")
    cores: dict[str, Core] = {}
    problems: dict[str, InvalidConfig] = {}
    for name, table in tables.items():
        try:
            cores[name] = core_of_table(name, table)
        except InvalidConfig as error:
            problems[name] = error
    _drop_contradicting(cores, problems)
    return Catalogue(cores, problems)


def core_of_table(name: str, table: object) -> Core:
    """Return the core that a table of the file describes.

    Raises:
        InvalidConfig: It will not do; `field` names the core and the setting.
    """
    try:
        msgspec.convert(name, CoreName)
        core: Core = msgspec.convert(table, Core)
    except msgspec.ValidationError as error:
        message = str(error)
        at = _AT.search(message)
        setting = f".{at[1]}" if at and at[1] else ""
        remedy = "correct it"
        if unknown := _UNKNOWN.search(message):
            setting, remedy = f"{setting}.{unknown[1]}", "take it out"
            message = f"a core of this kind has no setting {unknown[1]!r}"
        raise InvalidConfig(
            _AT.sub("", message), field=f"{TABLE}.{name}{setting}", remedy=remedy
        ) from error
    check_core(name, core)
    return core


def _drop_contradicting(cores: dict[str, Core], problems: dict[str, InvalidConfig]) -> None:
    """Leave cores that can be run together; who is at fault goes to the problems."""
    while True:
        try:
            return check_cores(cores, others=problems)
        except InvalidConfig as error:
            # Names may hold points: the longest one that fits.
            at = [name for name in cores if str(error.field).startswith(f"{TABLE}.{name}.")]
            name = max(at, key=len)
            problems[name] = error
            del cores[name]


def read_secret(core: CoreSettings, name: str, environ: Mapping[str, str]) -> str | None:
    """Return the key of a core's endpoint, from the variable or the file that it names.

    Raises:
        InvalidConfig: it names one that is not there, is empty, or has a line end within it. What
            was read is in no message.
    """
    variable = getattr(core, "api_key_env", None)
    file = getattr(core, "api_key_file", None)
    if variable is not None:
        found, setting, where = environ.get(variable, ""), "api_key_env", f"variable {variable}"
    elif file is not None:
        found, setting, where = _read_key_file(name, Path(file)), "api_key_file", f"file {file}"
    else:
        return None
    key = found.strip()
    if not key or any(not character.isprintable() or character == " " for character in key):
        raise InvalidConfig(
            f"the {where} holds {'a key of several lines or words' if key else 'no key'}",
            field=f"{TABLE}.{name}.{setting}",
            remedy="let it hold the key and nothing else; a variable: where `aios up` is run",
        )
    return key


def _read_key_file(name: str, path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(
            f"the key cannot be read: {type(error).__name__}",
            field=f"{TABLE}.{name}.api_key_file",
            remedy="name a file that this user may read",
        ) from error


def _unreadable(why: str, setting: str = FILE_NAME, remedy: str = "correct the file") -> Catalogue:
    return Catalogue(problems={FILE_NAME: InvalidConfig(why, field=setting, remedy=remedy)})
