"""Changes to `cores.toml`: comments, order and line ends stay; nothing wrong is ever written."""

import tomllib
from collections.abc import Callable, Sequence

import msgspec
import tomlkit
from tomlkit import TOMLDocument
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table

from aios_broker.catalogue import FILE_NAME, TABLE, Catalogue, parse_catalogue, read_catalogue
from aios_broker.contract.cores import Core, CoreSettings
from aios_broker.contract.errors import InvalidConfig
from aios_local.toml_file import TomlFile


class CoresFile(TomlFile):
    """The file of one kernel's cores, to be changed."""

    def read(self) -> Catalogue:
        """Return what it says now."""
        return read_catalogue(self.path)

    def add(self, name: str, core: Core) -> None:
        """Write a core at the end of the file.

        Raises:
            InvalidConfig: The name is taken, or the file would be wrong; nothing was written.
        """
        self._change(self._addition(name, core))

    def check_addition(self, name: str, core: Core) -> None:
        """Refuse what `add` would refuse, before much is done for it; nothing is written."""
        self._changed(self._addition(name, core))

    def _addition(self, name: str, core: Core) -> Callable[[Table], None]:
        def change(tables: Table) -> None:
            if name in tables:
                raise InvalidConfig(
                    "there is a core of this name",
                    field=f"{TABLE}.{name}",
                    remedy=f"take another, or remove it: `aios cores remove {name}`",
                )
            if core.default:
                _take_default(tables)
            tables.append(name, _table_of(core))

        return change

    def remove(self, name: str) -> None:
        """Take a core out, and the comments within its table; those behind it are the next one's.

        Raises:
            InvalidConfig: There is none of this name, or another one needs it.
        """

        def change(tables: Table) -> None:
            _existing(tables, name)
            tables.remove(name)

        self._change(change, lambda text: without_table(text, name))

    def make_default(self, name: str) -> None:
        """Let a core take what names none, and no other.

        Raises:
            InvalidConfig: There is none of this name, or the file is wrong.
        """

        def change(tables: Table) -> None:
            table = _existing(tables, name)
            _take_default(tables)
            table["default"] = True

        self._change(change)

    def _change(
        self, change: Callable[[Table], None], cut: Callable[[str], str] | None = None
    ) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.locked():
            self.write(self._changed(change, cut))

    def _changed(
        self, change: Callable[[Table], None], cut: Callable[[str], str] | None = None
    ) -> str:
        """Return what the file would say.

        Args:
            change: Of the tables, in a file with plain line ends.
            cut: The same as a change of lines, taken where it comes to the same.
        """
        text = self.text()
        ends_by_crlf = 0 < text.count("\n") == text.count("\r\n")
        if ends_by_crlf:
            text = text.replace("\r\n", "\n")
        before = parse_catalogue(text)
        if FILE_NAME in before.problems:
            raise before.problems[FILE_NAME]
        try:
            document = tomlkit.parse(text)
            change(_tables(document))
            changed = tomlkit.dumps(document)
            if cut is not None and _says(shorter := cut(text)) == _says(changed):
                changed = shorter
        except (TOMLKitError, ValueError) as error:  # TOML that is written in a way of its own
            raise InvalidConfig(
                f"{self.path} cannot be changed as it is written: {error}",
                field=FILE_NAME,
                remedy=f"write each core as a table of its own: [{TABLE}.NAME]",
            ) from error
        after = parse_catalogue(changed)
        for name, problem in after.problems.items():
            if str(problem) != str(before.problems.get(name)):  # it was not there before
                raise problem
        return changed.replace("\n", "\r\n") if ends_by_crlf else changed


def without_table(text: str, name: str) -> str:
    """Return a file's text without the lines of a core's tables.

    Comments at their end stay: they are the next one's, but for those that follow a setting and are
    followed by a blank line.
    """
    kept: list[str] = []
    cut: list[str] | None = None  # the lines since a header of the core
    for line in text.splitlines(keepends=True):
        path = _header(line)
        if path is not None:
            kept += _of_the_next(cut or ())
            cut = [] if path[:2] == [TABLE, name] else None
        (kept if cut is None else cut).append(line)
    kept += _of_the_next([*(cut or ()), "\n"])[:-1]
    return "".join(kept)


def _header(line: str) -> list[str] | None:
    """Return the path of the table that begins with a line; None: none does."""
    if not line.lstrip().startswith("["):
        return None
    try:
        table: object = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return None
    path: list[str] = []
    while isinstance(table, dict) and table:
        [(key, table)] = table.items()
        path.append(key)
    return path


def _of_the_next(lines: Sequence[str]) -> Sequence[str]:
    end = len(lines)
    while end > 0 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    behind = lines[end:]
    blank = next((at for at, line in enumerate(behind) if not line.strip()), 0)
    first = next((at for at, line in enumerate(behind[blank:], blank) if line.strip()), len(behind))
    return behind[first:]


def _says(text: str) -> object:
    """Return what a file says of cores; None: nothing. False: it is no TOML."""
    try:
        return tomllib.loads(text).get(TABLE) or None
    except tomllib.TOMLDecodeError:
        return False


def _tables(document: TOMLDocument) -> Table:
    if TABLE not in document:
        document.append(TABLE, tomlkit.table(is_super_table=True))
    tables: Table = document[TABLE]
    return tables


def _existing(tables: Table, name: str) -> Table:
    if name not in tables:
        known = ", ".join(tables)
        raise InvalidConfig(
            f"there is no core {name!r}",
            field=f"{TABLE}.{name}",
            remedy=f"use of {known}" if known else "add one with `aios cores add`",
        )
    table: Table = tables[name]
    return table


def _take_default(tables: Table) -> None:
    for name in tables:
        if isinstance(tables[name], Table):
            tables[name].pop("default", None)


def _table_of(core: Core) -> Table:
    """Return a core as a table: its kind, what only its kind has, what every core has."""
    table = tomlkit.table()
    values = msgspec.to_builtins(core)
    shared = CoreSettings.__struct_fields__
    for setting in sorted(values, key=lambda each: (each in shared, each != "kind")):
        value = values[setting]
        if isinstance(value, dict):
            inline = tomlkit.inline_table()
            inline.update(value)
            value = inline
        elif isinstance(value, tuple):
            value = list(value)
        if value != {}:
            table.append(setting, value)
    return table
