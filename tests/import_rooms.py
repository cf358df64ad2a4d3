"""A kind of import contract: each room imports what its line names, and nothing else.

A room is a package, or a file that is allowed more or less than the package around it: a module
belongs to the longest line that it begins with. What a line names are rooms and third-party
packages; the standard library and the room itself are free. A line that lacks something and a line
that names too much are both reported, so that the list says what is so.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping

import grimp
from importlinter import Contract, ContractCheck, fields, output


class RoomsField(fields.Field[dict[str, frozenset[str]]]):
    """A table of rooms, each with the list of what it may import."""

    def parse(self, raw_data: object) -> dict[str, frozenset[str]]:
        """Return the table; refuse what is none."""
        if not isinstance(raw_data, Mapping):
            raise fields.ValidationError("a table is wanted: room = [what it may import]")
        for room, names in raw_data.items():
            if not isinstance(names, list):
                raise fields.ValidationError(f"{room}: a list is wanted")
        return {room: frozenset(names) for room, names in raw_data.items()}


class RoomsContract(Contract):
    """Compares the graph of all imports with `may_import`, line by line."""

    type_name = "rooms"
    may_import = RoomsField()

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:  # noqa: FBT001 - import-linter's
        """Return what is imported against the table, and what the table has too much."""
        table: dict[str, frozenset[str]] = self.may_import  # type: ignore[assignment]
        ours = {room.partition(".")[0] for room in table}
        refused: list[str] = []
        used: defaultdict[str, set[str]] = defaultdict(set)
        for importer in sorted(graph.modules):
            if importer.partition(".")[0] not in ours:
                continue
            room = room_of(importer, table)
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                target = target_of(imported, table, ours)
                if target in (room, None):
                    continue
                used[room].add(str(target))
                if target not in table[room]:
                    [detail, *_] = graph.get_import_details(importer=importer, imported=imported)
                    refused.append(
                        f"{importer}:{detail['line_number']} imports {imported}:"
                        f" the line of {room} does not name {target}"
                    )
        gone = [f"no module stands in {room}" for room in table if room not in graph.modules]
        idle = [
            f"{room} names {name}, and does not import it"
            for room, names in table.items()
            for name in sorted(names - used[room])
        ]
        problems = refused + gone + idle
        return ContractCheck(kept=not problems, metadata={"problems": problems})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print a line for each problem."""
        for problem in check.metadata["problems"]:
            output.print_error(problem, bold=False)


def room_of(module: str, table: Mapping[str, object]) -> str:
    """Return the longest line of the table that the module is, or stands in."""
    while module not in table:
        module, dot, _ = module.rpartition(".")
        if not dot:
            raise ValueError(f"the table of rooms lacks a line for the package {module!r}")
    return module


def target_of(imported: str, table: Mapping[str, object], ours: set[str]) -> str | None:
    """Return the room or the third-party package; None for the standard library."""
    root = imported.partition(".")[0]
    if root in ours:
        return room_of(imported, table)
    return None if root in sys.stdlib_module_names else root
