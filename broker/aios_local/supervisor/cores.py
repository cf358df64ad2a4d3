"""The file of cores as a running kernel follows it: what it wants to run, what is wrong with it."""

from collections.abc import Mapping
from dataclasses import replace

from aios_broker.catalogue import (
    FILE_NAME,
    TABLE,
    Catalogue,
    Stamp,
    catalogue_path,
    cores_source,
    file_stamp,
    read_catalogue,
)
from aios_broker.config import KernelConfig
from aios_broker.contract.cores import Core, CoreCard, process_version
from aios_broker.contract.errors import InvalidConfig
from aios_local.supervisor.programs import SGLANG_KEY, Program, core_programs


class CoresWatch:
    """Looks at the file again and again. A core whose entry has become wrong stays as it was.

    What would stop a core, or start it anew, is done when two looks agree: who writes the file may
    be in the middle.
    """

    def __init__(self, config: KernelConfig) -> None:
        self.path = catalogue_path(config.state_dir, config.cores).absolute()
        self._config = config
        self._taken = config.environment_core
        self._source = cores_source(self.path)
        self._wrong: frozenset[str] = frozenset()
        self._news: list[str] = []
        self._cores: dict[str, Core] = {}
        self._problems: tuple[str, ...] = ()
        self._keys: frozenset[str] = frozenset((SGLANG_KEY,))
        self._stamp: Stamp = None
        self._unsure: tuple[Stamp] | None = None  # of a file that would stop somebody
        self.look()

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the file, in sentences."""
        return self._problems

    def take_news(self) -> list[str]:
        """Return, once, what has changed."""
        news, self._news = self._news, []
        return news

    @property
    def programs(self) -> tuple[Program, ...]:
        """The workers that its cores are to have."""
        return core_programs(self._cores)

    @property
    def secrets(self) -> frozenset[str]:
        """The variables that hold keys: of all cores that were ever described, rightly or not."""
        return self._keys

    def describes(self, card: CoreCard) -> bool:
        """Whether a core that the fleet knows is in this file, or not its matter."""
        if card.source != self._source or FILE_NAME in self._wrong:
            return True
        # An SGLang server says its name itself.
        config = self._config
        unnamed = config.llm_core == "sglang" == card.kind and config.llm_workers > 0
        return unnamed or card.name in {*self._cores, *self._wrong, self._taken}

    def look(self) -> bool:
        """Read the file if it is another than before; return whether that is to be followed."""
        stamp, unsure = file_stamp(self.path), self._unsure
        self._unsure = None
        if stamp == self._stamp:
            return unsure is not None  # who read the other one may have failed by it
        found = self._without_taken(read_catalogue(self.path))
        self._keys |= found.key_variables
        if unsure != (stamp,) and self._stops_somebody(found):
            self._unsure = (stamp,)
            return False
        self._stamp = stamp
        self._take(found)
        return True

    def _stops_somebody(self, found: Catalogue) -> bool:
        after = self._followed(found)
        return any(
            name not in after
            or core.workers > after[name].workers
            or process_version(core) != process_version(after[name])
            for name, core in self._cores.items()
        )

    def _followed(self, found: Catalogue) -> dict[str, Core]:
        """Return the cores that are wanted by a file: what is wrong in it stays as it was."""
        before = self._cores
        if FILE_NAME in found.problems:
            return dict(before)
        kept = {name: before[name] for name in found.problems if name in before}
        return {**kept, **found.cores}

    def _without_taken(self, found: Catalogue) -> Catalogue:
        """A core of the file cannot have the name of the one that the environment describes."""
        name = self._taken
        if name is None or name not in found.cores:
            return found
        others = {other: core for other, core in found.cores.items() if other != name}
        problems = {**found.problems, name: name_is_taken(name)}
        return replace(found, cores=others, problems=problems)

    def _take(self, found: Catalogue) -> None:
        before, cores = self._cores, self._followed(found)
        problems = tuple(str(problem) for problem in found.problems.values())
        self._news = changes_between(before, cores)
        self._news += [
            f"{self.path}: {problem} What runs is left as it is."
            for problem in problems
            if problem not in self._problems
        ]
        self._cores, self._problems = cores, problems
        self._wrong = frozenset(found.problems)


def name_is_taken(name: str) -> InvalidConfig:
    """Return the error of a core that is called as the environment's is."""
    return InvalidConfig(
        "the core that the environment describes has this name",
        field=f"{TABLE}.{name}",
        remedy="take another name, or set AIOS_LLM_WORKERS=0",
    )


def changes_between(before: Mapping[str, Core], after: Mapping[str, Core]) -> list[str]:
    """Say what has changed, a line for each core."""
    lines = [f"core {name} is removed" for name in before if name not in after]
    for name, core in after.items():
        if name not in before:
            lines.append(f"core {name} is added")
        elif before[name] != core:
            same = process_version(before[name]) == process_version(core)
            lines.append(f"core {name} is changed{'' if same else ': it starts anew'}")
    return lines
