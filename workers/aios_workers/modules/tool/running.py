"""How a tool is run: what has to be given, and what keeps it in.

    runner = ...                                  # one per worker
    result = await runner.run(program, call, heard)

Whoever cancels the run ends the tool, with all processes that it began.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aios_broker.contract.names import Owner
from aios_broker.contract.tools import SandboxKind, ToolCard, ToolResult
from aios_workers.modules.tool.sandbox_files import SandboxFiles


@dataclass(frozen=True, slots=True)
class ToolProgram:
    """One version of a tool, found and checked: what is started, and what it has to see."""

    card: ToolCard
    function: str  # `module:function`
    python: Path  # the interpreter of its environment
    import_paths: tuple[Path, ...]  # where its modules are looked for; it only reads there
    # What its version is made of: all files below these (a folder), or the modules loaded of them.
    roots: tuple[Path, ...] = ()
    whole: bool = False
    by_hints: bool = True  # its schema is that of its type hints, and arguments are made such
    last_paths: tuple[Path, ...] = ()  # where is looked after all others, for pydantic
    content: tuple[tuple[str, str], ...] = ()  # path, SHA-256
    marked: str = ""  # the name that its decorator gives it

    def request(self) -> dict[str, object]:
        """Return what its process is asked (`process/__main__.py`)."""
        return {
            "function": self.function,
            "import_paths": [str(each) for each in self.import_paths],
            "roots": [str(each) for each in self.roots],
            "whole": self.whole,
            "by_hints": self.by_hints,
            "last_paths": [str(each) for each in self.last_paths],
        }


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call, its arguments checked."""

    id: str  # the syscall's
    owner: Owner
    arguments: Mapping[str, Any]
    # Lays the files of the agent's storage that it is to find into a folder; None: it has none.
    lay: Callable[[Path], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """A process that is about to be started."""

    command: tuple[str, ...]
    environ: Mapping[str, str]  # all of it: nothing is inherited
    workspace: Path  # its working directory, the one place where it may write, but for scratch
    readable: tuple[Path, ...] = ()  # what it has to read beside the system
    descriptors: tuple[int, ...] = ()  # that it is given; closed here once it has started
    written_bytes: int | None = None  # what its workspace takes at most; None: as its card says


class Sandbox(Protocol):
    """What a tool's processes are kept in by."""

    @property
    def kind(self) -> SandboxKind:
        """Which it is."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What it does not keep, for the result of each call."""
        ...

    def confined(self, program: ToolProgram, launch: Launch) -> Launch:
        """Return how the process is started so that it is kept in, by the limits of its card.

        Raises:
            SandboxUnavailable: This machine cannot keep it in.
        """
        ...

    def files(self, launch: Launch, pid: int) -> SandboxFiles:
        """Return the files of what was started so, and runs what it was to run by now.

        Raises:
            SandboxUnavailable: They cannot be seen.
        """
        ...


class ToolRunner(Protocol):
    """Runs calls of tools."""

    async def run(
        self, program: ToolProgram, call: ToolCall, heard: Callable[[str], None]
    ) -> ToolResult:
        """Run a call to its end, within its limits; `heard` is given what it prints.

        Raises:
            ToolFailed: It raised, died, or returned what is no JSON; `ToolTimeout`, `ToolLimit`.
            ToolUnavailable: It could not be loaded.
            SandboxUnavailable: This machine cannot keep it in.
        """
        ...

    async def close(self) -> None:
        """End all that runs."""
        ...


@dataclass(frozen=True, slots=True)
class NoSandbox:
    """Processes of their own with nothing around them but limits."""

    kind: SandboxKind = "none"
    warnings: tuple[str, ...] = ("no sandbox: it sees what the worker's user sees",)

    def confined(self, program: ToolProgram, launch: Launch) -> Launch:
        """Return it as it is."""
        return launch

    def files(self, launch: Launch, pid: int) -> SandboxFiles:
        """Return those of its workspace."""
        del pid
        return SandboxFiles(launch.workspace)
