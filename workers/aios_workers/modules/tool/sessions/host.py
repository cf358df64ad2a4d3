"""The sessions that live in this worker: opened, run in, watched over, ended.

One run at a time in each; others of the session wait for their turn.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

from msgspec.structs import replace

from aios_broker.comparing import Comparer
from aios_broker.contract.errors import (
    QuotaExceeded,
    SandboxUnavailable,
    SessionBusy,
    SessionLost,
    ToolUnavailable,
    UnknownSession,
)
from aios_broker.contract.exec import (
    ExecChanges,
    ExecCommit,
    ExecDiscard,
    ExecFailure,
    ExecOpen,
    ExecOutcome,
    ExecRun,
    ExecSession,
)
from aios_broker.contract.names import Owner
from aios_broker.contract.syscall import Syscall
from aios_broker.contract.workspace import WorkspaceChanges
from aios_broker.places import Holder
from aios_broker.queues.exec_sessions import SessionRecord, SessionRecords, spare
from aios_broker.retry import patiently
from aios_workers.modules.tool.running import Launch, Sandbox
from aios_workers.modules.tool.sandbox_files import FileUsage, SandboxLost
from aios_workers.modules.tool.sessions.files import (
    MOST_DEPTH,
    MOST_SEEN,
    made_since,
    space_of,
    stamps,
)
from aios_workers.modules.tool.sessions.session_calls import Calls, SessionCalls
from aios_workers.modules.tool.sessions.session_process import (
    OWN_PROCESSES,
    SessionEnded,
    SessionProcess,
    SessionRun,
)
from aios_workers.modules.tool.workspace.changes import Changes
from aios_workers.modules.tool.workspace.folder import remove
from aios_workers.modules.tool.workspace.session_files import SessionFiles

logger = logging.getLogger(__name__)
T = TypeVar("T")

LOOK_S = 0.5  # between two looks at what sessions use
MOST_WAITING = 16  # runs of one session
OPEN_ANEW = "open a session anew; what the old one held is gone"


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """What the operator allows of sessions."""

    of_agent: int  # at once
    of_tenant: int
    without_sandbox: bool = False  # also where nothing keeps them in


@dataclass(slots=True)
class Session:
    """A session that lives here."""

    owner: Owner
    asked: ExecOpen
    process: SessionProcess
    folder: Path  # where it works, as it sees it
    files: SessionFiles  # in the folder
    shown: ExecSession
    used_s: float  # by the loop's clock
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class SessionHost:
    """The sessions of one worker."""

    def __init__(
        self,
        name: str,
        records: SessionRecords,
        calls: Calls,
        sandbox: Sandbox,
        place: Launch,
        terms: SessionTerms,
    ) -> None:
        """Take what sessions stand on; `place`: the folder of all, and what they are told."""
        self.name = name
        self._records = records
        self._calls = calls
        self._sandbox = sandbox
        self._place = place
        self._terms = terms
        self._sessions: dict[str, Session] = {}
        self._comparer = Comparer()
        self._opening: dict[str, asyncio.Event] = {}
        self._clock = asyncio.get_running_loop().time

    async def open(self, syscall: Syscall, asked: ExecOpen) -> ExecSession:
        """Open a session; its id is the syscall's.

        Raises:
            QuotaExceeded: The agent or its tenant has as many as it may.
            SandboxUnavailable: This machine cannot keep it in; `ToolUnavailable`.
        """
        if self._sandbox.kind == "none" and not self._terms.without_sandbox:
            raise SandboxUnavailable(
                "; ".join(self._sandbox.warnings) or "this machine has no sandbox",
                remedy="see `aios doctor`; AIOS_TOOL_SANDBOX=none runs code without one",
            )
        now = await patiently(self._records.now)
        shown = ExecSession(
            syscall.id,
            asked.name or "",
            asked.interpreter,
            opened_at=now,
            used_at=now,
            idle_s=asked.idle_s,
            worker=self.name,
            sandbox=self._sandbox.kind,
            limits=asked.limits,
            warnings=tuple(self._sandbox.warnings),
        )
        has_opened = self._opening[shown.id] = asyncio.Event()
        try:
            await self._write(syscall.owner, shown, now)
            await patiently(lambda: self._check_room(syscall.owner, now))
            self._sessions[shown.id] = await self._started(syscall, asked, shown)
        except BaseException:
            await self._records.forget(syscall.tenant, shown.id)
            raise
        finally:
            del self._opening[shown.id]
            has_opened.set()
        return shown

    async def _check_room(self, owner: Owner, now: float) -> None:
        """Refuse a session that is one too many; it stands among the records already."""
        records = await self._records.of_tenant(owner.tenant)
        await self._records.forget(owner.tenant, *spare(records, now))
        living = [one for one in records if one.session.state != "lost"]
        hosts = {one.host for one in living} - {self.name}
        alive = {self.name, *[host for host in hosts if await self._records.lives(host)]}
        living = [one for one in living if one.host in alive]
        own = sum(one.agent == owner.agent for one in living)
        for count, most, who, name in (
            (own, self._terms.of_agent, f"agent {owner.agent!r}", "agent_sessions"),
            (len(living), self._terms.of_tenant, f"tenant {owner.tenant!r}", "tenant_sessions"),
        ):
            if count > most:
                raise QuotaExceeded(
                    f"{who} has as many exec sessions as it may: {most}",
                    field=f"quota.{name}",
                    remedy="close one (exec.close; `aios exec list` shows them)",
                )

    async def _started(self, syscall: Syscall, asked: ExecOpen, shown: ExecSession) -> Session:
        self._place.workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(mkdtemp(dir=self._place.workspace))
        files: SessionFiles | None = None
        process: SessionProcess | None = None
        try:
            files = SessionFiles(folder.parent, asked.workspace, self._calls, self._comparer)
            process = await self._process(asked, folder)
            files.folder = process.files
            try:
                await files.fetch(syscall, asked.limits.file_bytes)
            except SandboxLost as error:
                raise ToolUnavailable(
                    "the interpreter ended before its files were there", remedy="see `aios doctor`"
                ) from error
        except BaseException:
            if process is not None:
                await process.end("it was not opened")
            if files is not None:
                await files.close()
            await _removed(folder)
            raise
        return Session(syscall.owner, asked, process, folder, files, shown, self._clock())

    async def _process(self, asked: ExecOpen, folder: Path) -> SessionProcess:
        place = Launch((), self._place.environ, folder)
        return await SessionProcess.start(asked, self._sandbox, Path(sys.executable), place)

    def has(self, session_id: str) -> bool:
        """Whether a session lives here, or is being opened."""
        return session_id in self._sessions or session_id in self._opening

    async def opened(self, session_id: str) -> None:
        """Wait for a session that is being opened, however that ends."""
        if (opening := self._opening.get(session_id)) is not None:
            await opening.wait()

    async def run(
        self, syscall: Syscall, asked: ExecRun, heard: Callable[[str], None]
    ) -> ExecOutcome:
        """Run code in a session; `heard` is given what it prints.

        Raises:
            SessionLost: It is gone; `SessionBusy`, `UnknownSession`.
        """
        async with self._turn(syscall.owner, asked.session) as session:
            return await self._ran(session, syscall, asked, heard)

    @asynccontextmanager
    async def _turn(self, owner: Owner, session_id: str) -> AsyncIterator[Session]:
        """Yield a session when nothing else is done in it."""
        session = self._of(owner, session_id)
        if session.waiting >= MOST_WAITING:
            raise SessionBusy(
                f"{MOST_WAITING} runs of this session wait already",
                retry_after_s=1.0,
                remedy="wait for them, or interrupt what runs (exec.interrupt)",
            )
        session.waiting += 1
        try:
            async with session.turn:
                if not session.process.is_alive:
                    raise await self._lost(session, session.process.reason, told=True)
                try:
                    yield session
                except SandboxLost as error:
                    raise await self._lost(session, "its interpreter ended", told=True) from error
        finally:
            session.waiting -= 1

    async def in_workspace(
        self, owner: Owner, asked: ExecChanges | ExecDiscard
    ) -> WorkspaceChanges:
        """Tell what differs in a session's files, or put them back.

        Raises:
            SessionLost: It is gone; `SessionBusy`, `UnknownSession`, and what the files raise.
        """
        async with self._turn(owner, asked.session) as session:
            session.used_s = self._clock()
            if isinstance(asked, ExecDiscard):
                return await session.files.discard(asked.session, asked.paths)
            holder = Holder(*owner)
            return await session.files.changes(holder, asked.session, asked.paths, diff=asked.diff)

    async def changes(self, owner: Owner, asked: ExecCommit) -> Changes:
        """Return what a commit would take: the session's turn is free by then.

        Raises:
            SessionLost: It is gone; `SessionBusy`, `UnknownSession`, and what the files raise.
        """
        async with self._turn(owner, asked.session) as session:
            session.used_s = self._clock()
            return await session.files.look(asked.paths)

    def files(self, owner: Owner, asked: ExecCommit) -> SessionFiles | None:
        """Return a session's files; None: it lives here no more."""
        session = self._sessions.get(asked.session)
        return session.files if session is not None and session.owner == owner else None

    async def _ran(
        self, session: Session, syscall: Syscall, asked: ExecRun, heard: Callable[[str], None]
    ) -> ExecOutcome:
        began_s = self._clock()
        number = session.shown.runs + 1
        limits = session.asked.limits
        calls = SessionCalls(self._calls, syscall, session.asked.tools)
        run = SessionRun(number, asked.code, asked.timeout_s, heard, calls, limits.output_bytes)
        await self._change(session, state="busy", runs=number)
        before = await _seen(session, stamps)
        try:
            told = await session.process.run(run)
        except SessionEnded as ended:
            raise await self._lost(session, str(ended), told=True) from ended
        finally:
            session.used_s = self._clock()
            await asyncio.shield(self._change(session, state="idle"))
        error = told.error
        if run.timed_out:
            error = ExecFailure(
                "Timeout",
                f"it ran for longer than {asked.timeout_s:g} s and was interrupted; the session "
                "goes on",
                error.traceback if error is not None else "",
            )
        return ExecOutcome(
            asked.session,
            number,
            stdout="".join(run.printed[0]),
            stderr="".join(run.printed[1]),
            output_cut=run.cut,
            value=told.value,
            rich=told.rich,
            error=error,
            files=await _seen(session, partial(made_since, before=before)),
            wall_s=round(self._clock() - began_s, 6),
            calls=calls.made,
        )

    async def interrupt(self, owner: Owner, session_id: str) -> ExecSession:
        """Interrupt what runs in a session."""
        session = self._of(owner, session_id)
        await session.process.interrupt()
        return session.shown

    async def reset(self, owner: Owner, session_id: str) -> ExecSession:
        """Begin a session anew: nothing that was defined, and no file, is left."""
        session = self._of(owner, session_id)
        await session.process.interrupt()
        async with session.turn:
            self._of(owner, session_id)
            await session.process.end("it was reset")
            await _removed(session.folder)
            session.folder.mkdir(mode=0o700)
            session.process = await self._process(session.asked, session.folder)
            session.files.folder = session.process.files
            try:
                await session.files.put_back()
            except SandboxLost as error:
                raise await self._lost(session, "its interpreter ended", told=True) from error
            session.used_s = self._clock()
            await self._change(session, state="idle", runs=0)
        return session.shown

    async def close_one(self, owner: Owner, session_id: str) -> ExecSession:
        """Close a session."""
        session = self._of(owner, session_id)
        del self._sessions[session_id]
        await self._gone(session, "it was closed")
        await patiently(lambda: self._records.forget(owner.tenant, session_id))
        return replace(session.shown, state="closed")

    def _of(self, owner: Owner, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is None or session.owner != owner:
            raise unknown(session_id)
        return session

    async def _lost(self, session: Session, reason: str, *, told: bool = False) -> SessionLost:
        """End a session, have the fleet know why, and return what its agent hears (`told`)."""
        reason = session.process.reason or reason
        if self._sessions.pop(session.shown.id, None) is not None:
            await self._gone(session, reason)
            session.shown = replace(session.shown, state="lost", reason=reason)
            await patiently(lambda: self._write(session.owner, session.shown, told=told))
        return lost(session.shown.id, reason)

    async def _gone(self, session: Session, reason: str) -> None:
        await session.process.end(reason)
        await _removed(session.folder)
        await session.files.close()

    async def _change(self, session: Session, **fields: object) -> None:
        if session.shown.id not in self._sessions:
            return
        now = await patiently(self._records.now)
        session.shown = replace(session.shown, used_at=now, **fields)
        await patiently(lambda: self._write(session.owner, session.shown, now))

    async def _write(
        self, owner: Owner, shown: ExecSession, now: float | None = None, *, told: bool = False
    ) -> None:
        now = await self._records.now() if now is None else now
        record = SessionRecord(shown, owner.agent, self.name, now, now if told else 0.0)
        await self._records.write(owner.tenant, record)

    async def step(self) -> float:
        """Say that this host lives, and end what was idle or goes beyond its limits."""
        await self._records.living(self.name)
        for session in list(self._sessions.values()):
            reason = await asyncio.to_thread(self._reason, session)
            if reason and session.shown.id in self._sessions:
                await self._lost(session, reason)
        return LOOK_S

    def _reason(self, session: Session) -> str:
        """Return why a session has to end; empty: it goes on."""
        if not session.process.is_alive:
            return "" if session.turn.locked() else "its interpreter ended"
        idle_s = self._clock() - session.used_s
        if not session.turn.locked() and not session.waiting and idle_s > session.asked.idle_s:
            return f"nothing was run in it for {session.asked.idle_s:g} s"
        return _reason_of_processes(session) or _reason_of_files(session)

    async def close(self) -> None:
        """End all sessions: their worker leaves."""
        while self._sessions:
            session = next(iter(self._sessions.values()))
            try:
                await self._lost(session, "its worker was stopped")
            except Exception as error:  # noqa: BLE001  the others are to be ended all the same
                logger.warning("nobody is told why session %s ended: %s", session.shown.id, error)
            self._sessions.pop(session.shown.id, None)
        try:
            await self._records.has_left(self.name)
        except Exception as error:  # noqa: BLE001  it is seen when its key is over
            logger.warning("the end of this worker's sessions is not told: %s", error)


def _reason_of_processes(session: Session) -> str:
    limits = session.asked.limits
    most = limits.processes + OWN_PROCESSES
    count, memory = tree_use(session.process.pid, most)
    if count > most:
        return f"it had more processes than it may: {limits.processes}"
    if memory > limits.memory_bytes:
        return f"it used more memory than it may: {limits.memory_bytes} bytes"
    return ""


def lost(session_id: str, reason: str) -> SessionLost:
    """Return the error of a session that is gone."""
    return SessionLost(
        f"session {session_id[:8]} is lost: {reason}", field="body.session", remedy=OPEN_ANEW
    )


def unknown(session_id: str) -> UnknownSession:
    """Return the error of a session that this agent does not have."""
    return UnknownSession(
        f"there is no exec session {session_id}",
        field="body.session",
        remedy="exec.list shows yours; exec.open begins one",
    )


async def _removed(folder: Path) -> None:
    await asyncio.to_thread(remove, folder)


async def _seen(session: Session, look: Callable[[Path], T]) -> T:
    """Have a function look at a session's folder."""
    assert session.process.files is not None
    return await session.process.files.read("", look)


def _reason_of_files(session: Session) -> str:
    limits = session.asked.limits
    most, written = FileUsage(limits.file_bytes, MOST_SEEN), session.process.files
    assert written is not None
    try:
        used = written.usage(most)
        with written.open() as folder:
            files, size, depth = space_of(folder)
    except SandboxLost:
        return ""  # it has ended, and is found so
    files, size = max(files, used.count), max(size, used.size_bytes)
    if files > MOST_SEEN:
        return f"it had more files than it may: {MOST_SEEN}"
    if depth > MOST_DEPTH:
        return f"its folders lay deeper in each other than they may: {MOST_DEPTH}"
    if size > limits.file_bytes:
        return f"its files were larger than they may be: {limits.file_bytes} bytes"
    return ""


def tree_use(pid: int, most: int) -> tuple[int, int]:
    """Return how many processes are below one, and what memory all use; counts no further."""
    count, size, left = 0, 0, [pid]
    while left and count <= most:
        one = left.pop()
        with contextlib.suppress(OSError, ValueError, IndexError):
            resident = int(Path(f"/proc/{one}/statm").read_text().split()[1])
            size += resident * os.sysconf("SC_PAGE_SIZE")
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found = [int(each) for each in path.read_bytes().split()]
                count += len(found)
                left += found
    return count, size
