"""Answers the syscalls of exec sessions, wherever in the fleet a session lives.

Any tool worker takes them. One whose session lives in another worker sends it there, hears what it
prints, and gives the answer; where that worker has died it says within seconds that the session
is lost.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from aios_broker.contract.errors import (
    KernelError,
    ModuleError,
    SessionLost,
    UnknownSession,
    WorkerLost,
)
from aios_broker.contract.exec import (
    ExecBody,
    ExecChanges,
    ExecClose,
    ExecCommit,
    ExecDiscard,
    ExecInterrupt,
    ExecList,
    ExecOpen,
    ExecReset,
    ExecRun,
    ExecSessions,
    WorkspaceBody,
)
from aios_broker.contract.names import Owner
from aios_broker.contract.reply import Reply, Result, decode_reply, encode, failure
from aios_broker.contract.syscall import Syscall, decode_syscall, encode_syscall
from aios_broker.queues.exec_sessions import SessionRecord, SessionRecords
from aios_broker.redis.connection import Connection
from aios_broker.retry import patiently
from aios_workers.modules.tool.sessions.commits import Commits
from aios_workers.modules.tool.sessions.host import SessionHost, lost, unknown
from aios_workers.runtime.executor import Done
from aios_workers.runtime.runs import Run

LOOK_S = 1.0  # between two looks whether the other worker lives
SEND_S = 0.05  # between two messages of what is printed

_Message = dict[str, Any]


class SessionAnswers:
    """The syscalls of sessions, as one worker answers them."""

    def __init__(
        self, host: SessionHost, records: SessionRecords, commits: Commits, waiting: Connection
    ) -> None:
        """Take the sessions that live here; `waiting`: a connection that blocks for messages."""
        self._host = host
        self._commits = commits
        self._records = records
        self._waiting = waiting
        self._heard: dict[str, asyncio.Queue[_Message]] = {}  # of what was sent elsewhere
        self._served: dict[str, asyncio.Task[None]] = {}  # of what came from elsewhere

    async def answer(self, run: Run, syscall: Syscall, heard: Callable[[str], None]) -> Done:
        """Return the result of a syscall; `heard` is given what its code prints.

        Raises:
            UnknownSession: The agent has none of that id.
            SessionLost: It is gone; says why.
        """
        body = syscall.body
        assert isinstance(body, ExecBody)
        if isinstance(body, ExecOpen):
            if body.workspace.files or body.workspace.shared:
                run.step_aside()  # it waits for storage
            return Done(await self._host.open(syscall, body))
        if isinstance(body, ExecList):
            return Done(await patiently(lambda: self._listed(syscall.owner)))
        if isinstance(body, ExecCommit):
            run.step_aside()  # it waits for storage, and for a person
            return Done(await self._committed(syscall, body))
        record = await patiently(lambda: self._record(syscall.owner, body.session))
        if run.lease.losses and isinstance(body, ExecRun):
            raise _unsure()
        run.step_aside()  # it waits for the code, and that may wait for other tools
        try:
            if record.host == self._host.name:
                return Done(await self._here(syscall, heard))
            return Done(await self._elsewhere(record, syscall, heard))
        except asyncio.CancelledError:
            if run.stopping == "drain" and isinstance(body, ExecRun):
                raise (
                    lost(body.session, "its worker was stopped")
                    if record.host == self._host.name
                    else _unsure()
                ) from None
            raise

    async def _committed(self, syscall: Syscall, body: ExecCommit) -> Result:
        """Commit where the session lives; what was begun goes on without it."""
        try:
            record = await patiently(lambda: self._record(syscall.owner, body.session))
            if record.host == self._host.name:
                return await self._here(syscall, _unheard)
            return await self._elsewhere(record, syscall, _unheard)
        except (SessionLost, UnknownSession) as error:
            return await self._commits.without_session(syscall, body, error)

    async def _record(self, owner: Owner, session_id: str) -> SessionRecord:
        """Return where a session lives.

        Raises:
            UnknownSession: This agent has no such session.
            SessionLost: It is gone.
        """
        record = await self._records.one(owner, session_id)
        if record is None:
            raise unknown(session_id)
        if record.session.state != "lost":
            here = record.host == self._host.name
            lives = self._host.has(session_id) if here else await self._records.lives(record.host)
            if not lives:
                record = await self._note_lost(owner.tenant, record)
        if record.session.state == "lost":
            raise await self._told(owner.tenant, record)
        return record

    async def _told(self, tenant: str, record: SessionRecord) -> KernelError:
        """Return what an agent hears of a lost session: why, once; then there is none."""
        now = await self._records.now()
        if record.is_spare(now):
            await self._records.forget(tenant, record.session.id)
            return unknown(record.session.id)
        if not record.told_at:
            await self._records.write(tenant, replace(record, told_at=now))
        return lost(record.session.id, record.session.reason)

    async def _note_lost(self, tenant: str, record: SessionRecord) -> SessionRecord:
        session = replace(record.session, state="lost", reason="its worker died")
        found = replace(record, session=session, changed_at=await self._records.now())
        await self._records.write(tenant, found)
        return found

    async def _died(self, tenant: str, record: SessionRecord) -> KernelError:
        return await self._told(tenant, await self._note_lost(tenant, record))

    async def _listed(self, owner: Owner) -> ExecSessions:
        found = []
        records, now = await self._records.of_tenant(owner.tenant), await self._records.now()
        for record in records:
            if record.agent != owner.agent or record.is_spare(now):
                continue
            one = record
            if one.session.state != "lost" and not await self._records.lives(one.host):
                one = await self._note_lost(owner.tenant, one)
            found.append(one.session)
        return ExecSessions(tuple(found))

    async def _here(self, syscall: Syscall, heard: Callable[[str], None]) -> Result:
        body = syscall.body
        if not isinstance(body, ExecRun | ExecInterrupt | ExecReset | ExecClose | WorkspaceBody):
            raise ModuleError(f"{syscall.kind} names no session")
        await self._host.opened(body.session)
        match body:
            case ExecRun():
                return await self._host.run(syscall, body, heard)
            case ExecInterrupt(session=session):
                return await self._host.interrupt(syscall.owner, session)
            case ExecReset(session=session):
                return await self._host.reset(syscall.owner, session)
            case ExecClose(session=session):
                return await self._host.close_one(syscall.owner, session)
            case ExecChanges() | ExecDiscard():
                return await self._host.in_workspace(syscall.owner, body)
            case ExecCommit():
                return await self._commits.of_session(syscall, body)

    async def _elsewhere(
        self, record: SessionRecord, syscall: Syscall, heard: Callable[[str], None]
    ) -> Result:
        """Have a session's worker run a syscall; return what it answers."""
        asked = secrets.token_hex(8)
        messages = self._heard[asked] = asyncio.Queue[_Message]()
        text = encode_syscall(syscall).decode()
        has_ended = False
        try:
            await patiently(
                lambda: self._records.send(
                    record.host, {"ask": asked, "from": self._host.name, "syscall": text}
                )
            )
            while True:
                try:
                    async with asyncio.timeout(LOOK_S):
                        message = await messages.get()
                except TimeoutError:
                    if not await patiently(lambda: self._records.lives(record.host)):
                        has_ended = True
                        raise await patiently(lambda: self._died(syscall.tenant, record)) from None
                    continue
                if "out" in message:
                    heard(message["text"])
                    continue
                has_ended = True
                return decode_reply(message["reply"]).unwrap()
        finally:
            del self._heard[asked]
            if not has_ended:
                await asyncio.shield(self._records.send(record.host, {"cancel": asked}))

    async def step(self) -> float:
        """Take a message of another worker."""
        message = await self._records.received(self._host.name, self._waiting, LOOK_S)
        if message is None:
            return 0.0
        if (asked := message.get("ask")) is not None:
            task = asyncio.create_task(self._serve(asked, message["from"], message["syscall"]))
            self._served[asked] = task
            task.add_done_callback(lambda _: self._served.pop(asked, None))
        elif (asked := message.get("cancel")) is not None:
            if (served := self._served.get(asked)) is not None:
                served.cancel()
        elif (queue := self._heard.get(message.get("to", ""))) is not None:
            queue.put_nowait(message)
        return 0.0

    async def _serve(self, asked: str, asker: str, text: str) -> None:
        """Run a syscall that another worker took; have it hear all."""
        syscall = decode_syscall(text)
        printed: list[str] = []

        async def tell() -> None:
            while True:
                await asyncio.sleep(SEND_S)
                await self._tell_printed(asked, asker, printed)

        telling = asyncio.create_task(tell())
        try:
            reply = Reply(syscall.id, await self._here(syscall, printed.append))
        except KernelError as error:
            reply = failure(syscall.id, error)
        except Exception as error:  # noqa: BLE001  whatever goes wrong, who asked hears it
            reply = failure(syscall.id, ModuleError(f"{type(error).__name__}"))
        finally:
            telling.cancel()
            await asyncio.wait([telling])
        await patiently(lambda: self._tell_printed(asked, asker, printed))
        done = {"to": asked, "reply": encode(reply).decode()}
        await patiently(lambda: self._records.send(asker, done))

    async def _tell_printed(self, asked: str, asker: str, printed: list[str]) -> None:
        if printed:
            text = "".join(printed)
            printed.clear()
            await self._records.send(asker, {"to": asked, "out": True, "text": text})

    async def close(self) -> None:
        """End what runs for others."""
        served = list(self._served.values())
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)


def _unheard(_: str) -> None:
    """A commit prints nothing."""


def _unsure() -> WorkerLost:
    return WorkerLost(
        "a worker was lost while this ran, and the code may have run or not: it is not run again",
        remedy="look at what the session holds, and run on from there",
    )
