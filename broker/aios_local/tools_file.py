"""Changes to `tools.toml`: comments and order stay; nothing wrong is ever written."""

import msgspec
import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.tools import ToolEntry
from aios_broker.tool_catalogue import FILE_NAME, TABLE, ToolCatalogue, parse_tools, read_tools
from aios_local.toml_file import TomlFile


class ToolsFile(TomlFile):
    """The file of one kernel's tools, to be changed."""

    def read(self) -> ToolCatalogue:
        """Return what it says now."""
        return read_tools(self.path)

    def add(self, name: str, entry: ToolEntry, *, replace: bool = False) -> None:
        """Write a tool at the end of the file.

        Raises:
            InvalidConfig: The name is taken, or the file would be wrong; nothing was written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.locked():
            document = self._document()
            tables = _tables(document)
            if name in tables and not replace:
                raise InvalidConfig(
                    "there is a tool of this name",
                    field=f"{TABLE}.{name}",
                    remedy=f"take another, or remove it: `aios tools remove {name}`",
                )
            tables.pop(name, None)
            table = tomlkit.table()
            table.update(msgspec.to_builtins(entry))
            tables.append(name, table)
            text = tomlkit.dumps(document)
            after = parse_tools(text)
            for where in (FILE_NAME, name):
                if where in after.problems:
                    raise after.problems[where]
            self.write(text)

    def remove(self, name: str) -> None:
        """Take a tool out.

        Raises:
            InvalidConfig: There is none of this name.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.locked():
            document = self._document()
            tables = _tables(document)
            if name not in tables:
                known = ", ".join(tables)
                raise InvalidConfig(
                    f"there is no tool {name!r}",
                    field=f"{TABLE}.{name}",
                    remedy=f"use of {known}" if known else "add one with `aios tools add`",
                )
            tables.remove(name)
            self.write(tomlkit.dumps(document))

    def switch(self, name: str, *, on: bool) -> None:
        """Switch a tool that comes with the kernel on or off."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.locked():
            document = self._document()
            tables = _tables(document)
            if name not in tables:
                tables.append(name, tomlkit.table())
            table = tables[name]
            if on:
                table.pop("enabled", None)
            else:
                table["enabled"] = False
            if not table:
                tables.remove(name)
            self.write(tomlkit.dumps(document))

    def _document(self) -> tomlkit.TOMLDocument:
        try:
            return tomlkit.parse(self.text())
        except TOMLKitError as error:
            raise InvalidConfig(
                f"{self.path} cannot be changed as it is written: {error}",
                field=FILE_NAME,
                remedy="correct the file",
            ) from error


def _tables(document: tomlkit.TOMLDocument) -> Table:
    if TABLE not in document:
        document.append(TABLE, tomlkit.table(is_super_table=True))
    tables: Table = document[TABLE]
    return tables
