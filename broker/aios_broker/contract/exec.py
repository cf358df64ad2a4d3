"""What an agent may ask of its exec sessions: interpreters that keep what was run in them.

A session is one agent's own. It lives in the sandbox of one tool worker, and ends when it is
closed, when it was idle for too long, when it met a limit, or with its worker: then who runs in it
hears `session-lost`.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from aios_broker.contract.names import Name, Request, Row, Text
from aios_broker.contract.tools import MadeFile, SandboxKind, ToolName
from aios_broker.contract.workspace import Manifest, Patterns, WorkspaceChanges

SessionId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]  # of the syscall that opened it
Interpreter = Literal["python", "shell"]
_Seconds = Annotated[float, Meta(gt=0.0, le=86_400.0)]


class SessionLimits(Request, frozen=True):
    """What a session may use. One that goes beyond is ended, with all processes that it began."""

    cpu_s: Annotated[float, Meta(gt=0.0, le=3_600.0)] = 60.0  # of one run
    # Of addresses, of each of its processes; and of memory that is in use, of all together.
    memory_bytes: Annotated[int, Meta(ge=64 * 1024**2, le=16 * 1024**3)] = 1024**3
    processes: Annotated[int, Meta(ge=1, le=256)] = 32
    # Of what one run prints, of each stream; what comes later is cut away.
    output_bytes: Annotated[int, Meta(ge=0, le=4 * 1024**2)] = 64 * 1024
    file_bytes: Annotated[int, Meta(ge=1024, le=4 * 1024**3)] = 256 * 1024**2  # of its workspace


class ExecOpen(Request, frozen=True, tag="exec.open"):
    """Begin a session: an interpreter of the agent's own, in a sandbox."""

    interpreter: Interpreter = "python"
    name: Name | None = None  # what people call it
    idle_s: _Seconds = 1_800.0  # it ends when nothing was run for so long
    limits: SessionLimits = field(default_factory=SessionLimits)
    # Those that code inside may call; None: all that the agent may.
    tools: Annotated[Row[ToolName], Meta(max_length=64)] | None = None
    workspace: Manifest = field(default_factory=Manifest)  # files of storage that it begins with


class ExecRun(Request, frozen=True, tag="exec.run"):
    """Run code in a session; what it defines is there for the next run."""

    session: SessionId
    code: Text
    timeout_s: _Seconds = 60.0


class ExecInterrupt(Request, frozen=True, tag="exec.interrupt"):
    """End what runs in a session; what it keeps stays."""

    session: SessionId


class ExecReset(Request, frozen=True, tag="exec.reset"):
    """Begin a session anew: nothing that was defined in it is left."""

    session: SessionId


class ExecClose(Request, frozen=True, tag="exec.close"):
    """End a session."""

    session: SessionId


class ExecList(Request, frozen=True, tag="exec.list"):
    """List the agent's sessions."""


class ExecChanges(Request, frozen=True, tag="exec.changes"):
    """Tell what differs in a session's folder from its manifest; in its turn, as a run."""

    session: SessionId
    paths: Patterns = ()  # only these
    diff: bool = True


class ExecCommit(Request, frozen=True, tag="exec.commit"):
    """Write what differs to storage, all or none; overwriting and deleting wait for a person."""

    session: SessionId
    paths: Patterns = ()  # only these


class ExecDiscard(Request, frozen=True, tag="exec.discard"):
    """Put a session's files back to how the manifest has them."""

    session: SessionId
    paths: Patterns = ()  # only these


WorkspaceBody = ExecChanges | ExecCommit | ExecDiscard
ExecBody = ExecOpen | ExecRun | ExecInterrupt | ExecReset | ExecClose | ExecList | WorkspaceBody


# What comes back.


class ExecSession(Struct, frozen=True, omit_defaults=True, tag="exec.session"):
    """A session as it is."""

    id: str
    name: str = ""
    interpreter: Interpreter = "python"
    state: Literal["idle", "busy", "closed", "lost"] = "idle"
    runs: int = 0  # since it was opened or reset
    opened_at: float = 0.0  # Unix time, s
    used_at: float = 0.0
    idle_s: float = 0.0
    worker: str = ""
    sandbox: SandboxKind = "none"
    limits: SessionLimits = field(default_factory=SessionLimits)
    reason: str = ""  # why it is lost
    warnings: tuple[str, ...] = ()  # such as what a machine without a sandbox does not keep


class ExecSessions(Struct, frozen=True, omit_defaults=True, tag="exec.list"):
    """Sessions, oldest first."""

    sessions: tuple[ExecSession, ...]


class ExecFailure(Struct, frozen=True, omit_defaults=True):
    """What the code raised, or the exit code of a shell's last command: the run did not fail."""

    name: str
    message: str
    traceback: str = ""


class ExecOutcome(Struct, frozen=True, omit_defaults=True, tag="exec.run"):
    """What a run printed, returned, raised and left."""

    session: str
    number: int = 0  # of the run in its session, from 1
    stdout: str = ""
    stderr: str = ""
    output_cut: bool = False  # it printed more than the session may
    value: str = ""  # how the last expression shows itself
    rich: tuple[dict[str, Any], ...] = ()  # by media type, such as {"image/png": base64}
    error: ExecFailure | None = None
    files: tuple[MadeFile, ...] = ()
    wall_s: float = 0.0
    calls: int = 0  # syscalls that its code made


ExecResult = ExecSession | ExecSessions | ExecOutcome | WorkspaceChanges
