"""What an agent may ask of the tool module: run a tool, and see which there are.

A tool is a function of a Python module or a folder with a `tool.toml`. Workers load it on demand,
in a process of its own, and say in its card what a caller and the kernel have to know of it. Its
version is a digest of its content: one that was changed is another.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.json_text import is_nested_deeper
from aios_broker.contract.names import Name, Request, Row

ToolName = Annotated[
    str,
    Meta(max_length=120, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*\Z"),
]
TOOL_NAME_RULE = "name it ORG/NAME: letters, digits and ._-, one slash, 120 characters at most"
ToolVersion = Annotated[str, Meta(pattern=r"^[0-9a-f]{12}\Z")]  # the first digits of a SHA-256
# What a lock is on, such as `gpu0` or `file:{path}`: {path} is the argument of that name.
LockTemplate = Annotated[str, Meta(min_length=1, max_length=200)]
# A path of the agent's storage, such as `notes/today.md` or `{path}`.
FileTemplate = Annotated[str, Meta(min_length=1, max_length=1_024)]
# none: a process of its own with limits, which sees what the worker's user sees.
SandboxKind = Literal["bubblewrap", "none"]

MARK = "__aios_tool__"  # the attribute in which a function says what it is as a tool
MAX_ARGUMENT_BYTES = 1024 * 1024  # of one call, as JSON
MAX_ARGUMENT_LEVELS = 64
MAX_PARALLEL = 10_000
KERNEL_TOOLS = "aios/"  # what the names of tools that come with the kernel begin with

_LONG_NUMBER = re.compile(rb"[0-9]{19}")  # fewer digits are no more than 64 bits

_Places = Annotated[int, Meta(ge=0, le=MAX_PARALLEL)]
_Seconds = Annotated[float, Meta(gt=0.0, le=86_400.0)]
_Bytes = Annotated[int, Meta(ge=1024, le=1024**4)]


class ParallelLimits(Request, frozen=True):
    """How many calls of a tool may run at once, over the whole fleet. 0: any number."""

    tool: _Places = 0  # of all agents together
    agent: _Places = 0  # of one agent
    tenant: _Places = 0  # of one tenant's agents together


class RunLimits(Request, frozen=True):
    """What one call may use. Who goes beyond is ended, with all processes that it began."""

    timeout_s: _Seconds = 60.0  # from its start to its answer
    cpu_s: _Seconds = 60.0  # of each of its processes
    memory_bytes: _Bytes = 1024**3  # of addresses, of each of its processes
    processes: Annotated[int, Meta(ge=1, le=4096)] = 64
    # Of text that it prints; what comes later is cut away.
    output_bytes: Annotated[int, Meta(ge=0, le=8 * 1024**2)] = 64 * 1024
    value_bytes: Annotated[int, Meta(ge=1024, le=16 * 1024**2)] = 1024**2  # of its value, as JSON
    file_bytes: _Bytes = 64 * 1024**2  # of all files that it writes


class NetworkRule(Request, frozen=True):
    """Where a tool may go on the network; without a rule it goes nowhere."""

    host: Annotated[str, Meta(min_length=1, max_length=253)]  # or `*.example.org`
    methods: Annotated[Row[str], Meta(min_length=1, max_length=16)] = ("GET",)
    paths: Annotated[Row[str], Meta(min_length=1, max_length=64)] = ("/",)  # what they begin with
    secrets: Annotated[Row[Name], Meta(max_length=16)] = ()  # that are put in on this way


class ToolSettings(Request, frozen=True, kw_only=True):
    """What a tool says of itself, by its decorator or its `tool.toml`."""

    description: Annotated[str, Meta(max_length=20_000)] = ""  # empty: its docstring
    parallel: ParallelLimits = field(default_factory=ParallelLimits)
    limits: RunLimits = field(default_factory=RunLimits)
    # What it has alone while it runs: nobody else of the tenant runs what has the same lock.
    locks: Annotated[Row[LockTemplate], Meta(max_length=7)] = ()
    idempotent: bool = False  # running it twice does no harm: it is tried again where a worker died
    destructive: bool = False  # a person is asked before it runs
    # It runs code that its caller gives: only in a sandbox, unless the operator goes without one.
    runs_code: bool = False
    # Files and directories of the agent's storage that it finds below `storage/` in its folder.
    files: Annotated[Row[FileTemplate], Meta(max_length=16)] = ()
    network: Annotated[Row[NetworkRule], Meta(max_length=64)] = ()
    secrets: Annotated[Row[Name], Meta(max_length=16)] = ()  # names only
    dependencies: Annotated[Row[str], Meta(max_length=64)] = ()  # such as `sympy>=1.13`


class FolderSettings(ToolSettings, frozen=True, kw_only=True):
    """A `tool.toml`: what a tool says of itself, and where it begins."""

    entry: Annotated[str, Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")]  # `module:function`
    parameters: dict[str, Any] | None = None  # a JSON Schema; None: from the function's type hints


class ToolEntry(Request, frozen=True, kw_only=True):
    """One tool of `tools.toml`: a function, a folder, or what holds for one of the kernel's."""

    function: Annotated[str, Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")] | None = None
    path: str | None = None  # the folder that the function's module is imported from
    folder: str | None = None  # that has a `tool.toml`
    enabled: bool = True  # else it is not there
    # The operator's, in place of what the tool says of itself.
    limits: RunLimits | None = None
    network: Annotated[Row[NetworkRule], Meta(max_length=64)] | None = None
    secrets: Annotated[Row[Name], Meta(max_length=16)] | None = None


class ToolCard(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="tool.card"):
    """What the fleet knows of a tool. Fields of a newer release are read past."""

    name: str
    version: str = ""  # empty: it could not be loaded, and `problem` says why
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)  # a JSON Schema, Draft 2020-12
    parallel: ParallelLimits = field(default_factory=ParallelLimits)
    limits: RunLimits = field(default_factory=RunLimits)
    locks: tuple[str, ...] = ()
    idempotent: bool = False
    destructive: bool = False
    runs_code: bool = False
    files: tuple[str, ...] = ()
    network: tuple[NetworkRule, ...] = ()
    secrets: tuple[str, ...] = ()  # names only
    dependencies: tuple[str, ...] = ()
    source: str = ""  # who describes it: a file of a host
    problem: str = ""  # why it cannot be called

    @property
    def timeout_s(self) -> float:
        """How long one call may take."""
        return self.limits.timeout_s

    @property
    def comes_with_kernel(self) -> bool:
        """Whether it is the kernel's own: `source` is a file that may say what holds for it."""
        return self.name.startswith(KERNEL_TOOLS)


class ToolRun(Request, frozen=True, tag="tool.call"):
    """Run a tool with arguments that its schema allows; they are checked before anything runs.

    A text that says a number or a truth value without a doubt is taken for it: nothing else is
    changed. What a tool prints comes as chunks where the caller streams.
    """

    tool: ToolName
    arguments: dict[str, Any] = field(default_factory=dict)
    version: ToolVersion | None = None  # None: the one that is there

    def __post_init__(self) -> None:
        """Refuse arguments that no tool could take, whatever its schema.

        Raises:
            InvalidSyscall: too large, too deep, or with a number of more than 64 bits.
        """
        check_arguments(self.arguments)


class ToolList(Request, frozen=True, tag="tool.list"):
    """List the tools of the kernel."""

    query: Annotated[str, Meta(max_length=1_000)] = ""  # words of its name or its description
    parameters: bool = False  # with their schemas


class ToolShow(Request, frozen=True, tag="tool.show"):
    """Return all that the kernel knows of one tool."""

    tool: ToolName


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Return when arguments are as large, and as deep, as those of a tool may be.

    Raises:
        InvalidSyscall: They are not; `field` is their path in a syscall.
    """
    try:
        data = msgspec.json.encode(arguments)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _refused(f"they cannot be written as JSON: {error}") from error
    if len(data) > MAX_ARGUMENT_BYTES:
        raise _refused(f"they have {len(data)} bytes, the limit is {MAX_ARGUMENT_BYTES}")
    if is_nested_deeper(data, MAX_ARGUMENT_LEVELS):
        raise _refused(f"they are nested more than {MAX_ARGUMENT_LEVELS} levels deep")
    if _LONG_NUMBER.search(data) is not None and _is_too_long(arguments):
        raise _refused("a whole number of them has more than 64 bits")


def _is_too_long(value: object) -> bool:
    if isinstance(value, int):
        return not -(1 << 63) <= value < 1 << 64
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list | tuple) and any(map(_is_too_long, value))


def _refused(why: str) -> InvalidSyscall:
    return InvalidSyscall(
        why, field="body.arguments", remedy="make them smaller, or keep them in storage as a file"
    )


ToolBody = ToolRun | ToolList | ToolShow


# What comes back.


class MadeFile(Struct, frozen=True, omit_defaults=True):
    """A file that a call left in its workspace."""

    path: str
    bytes: int
    content: str = ""  # in base64; empty where it is too large to travel
    stored: str = ""  # where it lies in the agent's storage, if it was put there


class ToolRunFacts(Struct, frozen=True, omit_defaults=True):
    """How a call ran."""

    version: str = ""
    sandbox: SandboxKind = "none"
    wall_s: float = 0.0
    cpu_s: float = 0.0
    memory_bytes: int = 0  # the most that it had at once
    warm: bool = False  # in a process that had run others before
    warnings: tuple[str, ...] = ()  # such as what a machine without a sandbox does not keep


class ToolResult(Struct, frozen=True, omit_defaults=True, tag="tool.call"):
    """What a tool returned, and what it printed and left meanwhile."""

    value: Any = None  # JSON
    output: str = ""  # what it printed, both streams; bytes that are no UTF-8 are replaced
    output_cut: bool = False  # it printed more than it may
    files: tuple[MadeFile, ...] = ()
    run: ToolRunFacts = field(default_factory=ToolRunFacts)


class ToolCards(Struct, frozen=True, omit_defaults=True, tag="tool.list"):
    """Tools, by name."""

    tools: tuple[ToolCard, ...]


ToolAnswer = ToolResult | ToolCards | ToolCard
