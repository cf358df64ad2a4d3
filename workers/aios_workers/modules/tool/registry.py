"""The tools of one worker: those of `tools.toml`, loaded when they are asked for.

Nothing of a tool is imported here: a process of its own says what it is (`describe`). What it says
is remembered until its files are others, which is looked for once a second at most.
"""

import asyncio
import difflib
import hashlib
import importlib.util
import logging
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec

from aios_broker.catalogue import Stamp, file_stamp
from aios_broker.contract.errors import (
    InvalidConfig,
    KernelError,
    ToolUnavailable,
    UnknownTool,
)
from aios_broker.contract.tools import (
    FolderSettings,
    ToolCard,
    ToolEntry,
    ToolSettings,
)
from aios_broker.tool_catalogue import (
    FILE_NAME,
    FOLDER_FILE,
    ToolCatalogue,
    read_folder,
    read_tools,
    settings_of,
)
from aios_workers.modules.tool.arguments import compiled
from aios_workers.modules.tool.egress.rules import wrong_rule
from aios_workers.modules.tool.environments import ToolEnvironments
from aios_workers.modules.tool.kernel_tool_entries import (
    ROOM,
    as_set,
    is_kernel_tool,
    kernel_content,
    with_kernel_tools,
)
from aios_workers.modules.tool.needs import check_locks
from aios_workers.modules.tool.removal import remove_tree
from aios_workers.modules.tool.running import Sandbox, ToolProgram
from aios_workers.modules.tool.tool_process import first_event, kill, launch_of, started

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
RETRY_S = 2.0  # a tool that cannot be loaded is tried again for a call after so long
CARD_RETRY_S = 30.0  # and for its card
VERSION_DIGITS = 12
DESCRIBED_AT_ONCE = 2  # processes that are started to see what tools are
NEAR = 3  # names that are told to who misspells one
_LAST = ("aios_sdk", "aios_broker")  # packages that a tool may import wherever it runs


@dataclass(slots=True)
class _Known:
    """A tool as it was loaded."""

    entry: ToolEntry
    program: ToolProgram | None
    error: KernelError | None
    stamps: dict[Path, Stamp]
    looked_s: float
    loaded_s: float


class ToolRegistry:
    """Finds the program of a tool by its name."""

    def __init__(
        self,
        path: Path,
        folder: Path,
        sandbox: Sandbox,
        environ: Mapping[str, str],
        environments: ToolEnvironments,
        source: str = "",
    ) -> None:
        """Take where the file of tools lies, where to work, and who describes the tools."""
        self.sandbox = sandbox
        self._path = path
        self._folder = folder
        self._environ = environ
        self._source = source
        self._environments = environments
        self._catalogue = ToolCatalogue()
        self._stamp: Stamp = None
        self._read_s = float("-inf")
        self._known: dict[str, _Known] = {}
        self._loading: dict[str, asyncio.Task[_Known]] = {}
        self._describing = asyncio.Semaphore(DESCRIBED_AT_ONCE)

    def names(self) -> tuple[str, ...]:
        """Return the names of all tools that the file describes, right or wrong."""
        catalogue = self._now()
        wrong = (name for name in catalogue.problems if name != FILE_NAME)
        return tuple(sorted({*catalogue.tools, *wrong}))

    async def program(self, name: str, version: str | None = None) -> ToolProgram:
        """Return the program of a tool as it is now; load it where that has not been done.

        Raises:
            UnknownTool: There is none of that name, or not of that version.
            ToolUnavailable: It cannot be loaded.
        """
        known = await self._loaded(name)
        if known.program is None:
            raise _again(known.error)
        found = known.program.card.version
        if version is not None and version != found:
            raise UnknownTool(
                f"{name} is of version {found} by now, not {version}",
                field="body.version",
                remedy="leave the version out, or ask for that one",
            )
        return known.program

    async def card(self, name: str) -> ToolCard:
        """Return the card of a tool, also of one that cannot be loaded.

        Raises:
            UnknownTool: There is none of that name.
        """
        known = await self._loaded(name, CARD_RETRY_S)
        if known.program is not None:
            return known.program.card
        return ToolCard(name=name, source=self._source, problem=_in_a_line(known.error))

    def forget(self, name: str) -> None:
        """Load a tool anew when it is next asked for."""
        self._known.pop(name, None)

    async def close(self) -> None:
        """End what is being loaded."""
        for task in self._loading.values():
            task.cancel()
        if self._loading:
            await asyncio.wait(self._loading.values())

    def _now(self, within_s: float = LOOK_EVERY_S) -> ToolCatalogue:
        """Return what the file says, or said so long ago at most."""
        now = asyncio.get_running_loop().time()
        if now - self._read_s >= within_s:
            self._read_s = now
            stamp = file_stamp(self._path)
            if stamp != self._stamp or stamp is None:
                self._stamp, self._catalogue = stamp, with_kernel_tools(read_tools(self._path))
                for problem in self._catalogue.problems.values():
                    logger.warning("%s: %s", self._path, problem)
        return self._catalogue

    def _entry(self, name: str) -> ToolEntry:
        catalogue = self._now()
        if name not in catalogue.tools:
            catalogue = self._now(0.0)  # it may have come this moment
        problem = catalogue.problems.get(name) or catalogue.problems.get(FILE_NAME)
        if name in catalogue.tools:
            return catalogue.tools[name]
        if problem is not None:
            raise ToolUnavailable(problem.message, field=problem.field, remedy=problem.remedy)
        if name in catalogue.off:
            raise UnknownTool(
                f"the operator has switched {name} off",
                field="body.tool",
                remedy=f"`enabled = false` stands in {self._path.name}",
            )
        near = difflib.get_close_matches(name, catalogue.tools, NEAR)
        raise UnknownTool(
            f"there is no tool {name!r}",
            field="body.tool",
            remedy=f"did you mean {', '.join(near)}?" if near else "`aios tools list` shows all",
        )

    async def _loaded(self, name: str, retry_s: float = RETRY_S) -> _Known:
        entry = self._entry(name)
        known = self._known.get(name)
        if known is not None and known.entry == entry and not self._has_changed(known, retry_s):
            return known
        task = self._loading.get(name)
        if task is None:
            task = asyncio.create_task(self._load(name, entry))
            self._loading[name] = task
            task.add_done_callback(lambda _: self._loading.pop(name, None))
        return await asyncio.shield(task)  # who waits for it may be cancelled, others wait too

    def _has_changed(self, known: _Known, retry_s: float) -> bool:
        now = asyncio.get_running_loop().time()
        if known.program is None and now - known.loaded_s >= retry_s:
            return True  # which of its files is wrong nobody knows
        if now - known.looked_s < LOOK_EVERY_S:
            return False
        known.looked_s = now
        return any(file_stamp(path) != stamp for path, stamp in known.stamps.items())

    async def _load(self, name: str, entry: ToolEntry) -> _Known:
        program, error = None, None
        before = {} if is_kernel_tool(name) else _stamps(_places(entry))
        try:
            async with self._describing:
                program = await self.described(name, entry)
        except (KernelError, OSError) as caught:
            error = caught if isinstance(caught, ToolUnavailable) else _unavailable(caught)
            logger.warning("the tool %s cannot be loaded: %s", name, _in_a_line(error))
        is_whole = program is None or is_kernel_tool(name)  # the kernel's change with the kernel
        files = () if is_whole or program is None else (Path(path) for path, _ in program.content)
        stamps = {**_stamps(files), **before}
        now = asyncio.get_running_loop().time()
        known = self._known[name] = _Known(entry, program, error, stamps, now, now)
        return known

    async def described(self, name: str, entry: ToolEntry) -> ToolProgram:
        """Load a tool, whatever the file says of it; nothing is remembered.

        Raises:
            ToolUnavailable: It cannot be loaded.
            InvalidConfig: What it says of itself is wrong.
        """
        program, settings = await asyncio.to_thread(self._found, name, entry)
        environment = await self._environments.of(settings.dependencies)
        program = replace(program, python=environment.python)
        said: dict[str, Any]
        if is_kernel_tool(name):
            said = {"settings": {}, "doc": "", "content": await asyncio.to_thread(kernel_content)}
        else:
            said = await self._said(program)
        if isinstance(settings, FolderSettings):
            parameters = settings.parameters
        else:
            parameters, settings = None, settings_of(said["settings"])
            if settings.dependencies and not environment.installed:
                environment = await self._environments.of(settings.dependencies)
                program = replace(program, python=environment.python)
                said = await self._said(program)
        parameters = said["parameters"] if parameters is None else parameters
        settings = as_set(settings, entry)
        compiled(parameters)
        check_locks(settings.locks, parameters)
        if (wrong := wrong_rule(settings.network, settings.secrets)) is not None:
            raise InvalidConfig(wrong, field="network", remedy="correct the rule")
        content = tuple((str(path), str(digest)) for path, digest in said["content"])
        card = self._card(name, settings, parameters, said["doc"])
        version = _version(program, card, content, environment.installed)
        card = msgspec.structs.replace(card, version=version)
        marked = str(said["settings"].get("name", ""))
        return replace(program, card=card, content=content, marked=marked)

    def _found(self, name: str, entry: ToolEntry) -> tuple[ToolProgram, ToolSettings]:
        """Return where a tool is, and what is known of it before it is loaded."""
        if entry.folder is not None:
            folder = Path(entry.folder).expanduser()
            settings: ToolSettings = read_folder(folder)
            assert isinstance(settings, FolderSettings)
            function, whole = settings.entry, True
            roots: tuple[Path, ...] = (ROOM if is_kernel_tool(name) else folder,)
            by_hints = settings.parameters is None
        else:
            assert entry.function is not None
            roots = () if entry.path is None else (Path(entry.path).expanduser(),)
            settings, function, whole, by_hints = ToolSettings(), entry.function, False, True
        return ToolProgram(
            card=ToolCard(name=name),
            function=function,
            python=Path(),
            import_paths=() if is_kernel_tool(name) else roots,
            roots=roots,
            whole=whole,
            by_hints=by_hints,
            last_paths=last_paths(),
        ), settings

    async def _said(self, program: ToolProgram) -> dict[str, Any]:
        await asyncio.to_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        workspace = Path(await asyncio.to_thread(mkdtemp, dir=self._folder))
        try:
            launch = launch_of(program, "describe", workspace, self._environ)
            process = await started(self.sandbox.confined(program, launch))
            try:
                return await first_event(process)
            finally:
                kill(process)  # it has said all
                await process.wait()
        finally:
            await asyncio.to_thread(remove_tree, workspace)

    def _card(
        self, name: str, settings: ToolSettings, parameters: dict[str, Any], doc: str
    ) -> ToolCard:
        return ToolCard(
            name=name,
            description=settings.description or doc,
            parameters=parameters,
            parallel=settings.parallel,
            limits=settings.limits,
            locks=tuple(settings.locks),
            idempotent=settings.idempotent,
            destructive=settings.destructive,
            runs_code=settings.runs_code,
            files=tuple(settings.files),
            network=tuple(settings.network),
            secrets=tuple(settings.secrets),
            dependencies=tuple(settings.dependencies),
            source=self._source,
        )


def last_paths() -> tuple[Path, ...]:
    """Return where a tool finds what it may import of ours, after all that is its own."""
    specs = [importlib.util.find_spec(package) for package in _LAST]
    places = [place for spec in specs if spec for place in spec.submodule_search_locations or ()]
    parents = (Path(place).parent for place in places)
    return tuple(dict.fromkeys((Path(sysconfig.get_path("purelib")), *parents)))


def _version(
    program: ToolProgram,
    card: ToolCard,
    content: tuple[tuple[str, str], ...],
    installed: tuple[str, ...],
) -> str:
    """Return the digest of all that makes a tool what it is; where it lies is no part of it."""
    roots = [str(root.resolve()) for root in program.roots]
    files = [(_relative(path, roots), digest) for path, digest in content]
    told = [program.function, msgspec.structs.replace(card, source=""), files, installed]
    data = msgspec.json.encode(told, order="deterministic")
    return hashlib.sha256(data).hexdigest()[:VERSION_DIGITS]


def _relative(path: str, roots: Iterable[str]) -> str:
    return next((path.removeprefix(root) for root in roots if path.startswith(root)), path)


def _places(entry: ToolEntry) -> Iterable[Path]:
    """Yield what is looked at for a change beside the files of a tool."""
    if entry.folder is not None:
        folder = Path(entry.folder).expanduser()
        yield folder
        yield folder / FOLDER_FILE
        for below in folder.rglob("*"):
            if below.is_dir() and below.name != "__pycache__":
                yield below


def _stamps(paths: Iterable[Path]) -> dict[Path, Stamp]:
    return {path: file_stamp(path) for path in paths}


def _unavailable(error: Exception) -> ToolUnavailable:
    if isinstance(error, InvalidConfig):
        return ToolUnavailable(error.message, field=error.field, remedy=error.remedy)
    if isinstance(error, KernelError):
        return ToolUnavailable(str(error))
    return ToolUnavailable(f"it cannot be read: {error}", remedy="see who may read it")


def _in_a_line(error: KernelError | None) -> str:
    """Return what is wrong without the traceback behind it."""
    return "" if error is None else error.message.partition("\n")[0]


def _again(error: KernelError | None) -> KernelError:
    """Return an error that is raised once more: each raising has a traceback of its own."""
    assert error is not None
    return type(error)(error.message, field=error.field, remedy=error.remedy)
