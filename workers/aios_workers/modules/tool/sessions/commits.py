"""Commits of sessions: each is decided once, and answered by whoever runs it, session or not.

1. Nobody has run it: the session's worker looks at the files, and keeps what is to be written.
2. That is written by one syscall, whose id comes from the asking one and from what it writes; run
   again it is the same syscall, also where it waits for a person or is done.
3. What it ended with is kept in its place.

A worker that dies between any two of these has another one go on from there. One that finds nothing
kept, and no session, decides that nothing is written, and says so: one that only seemed to be dead
then writes nothing either.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from aios_broker.contract.errors import ModuleError, SessionLost, UnknownSession
from aios_broker.contract.exec import ExecCommit
from aios_broker.contract.storage import Entries, Entry, StorageApply
from aios_broker.contract.syscall import Syscall
from aios_broker.contract.workspace import ChangedFile, WorkspaceChanges
from aios_broker.queues.exec_commits import CommitRecord, CommitRecords
from aios_broker.retry import patiently
from aios_workers.modules.tool.sessions.host import OPEN_ANEW, SessionHost
from aios_workers.modules.tool.sessions.session_calls import Calls
from aios_workers.modules.tool.workspace.session_files import SessionFiles, changes_of_storage

NOTHING_WRITTEN = "nothing of this commit was written"


class Commits:
    """The commits that this worker runs."""

    def __init__(self, host: SessionHost, records: CommitRecords, calls: Calls) -> None:
        """Take the sessions that live here; `calls`: what makes syscalls."""
        self._host = host
        self._records = records
        self._calls = calls

    async def of_session(self, syscall: Syscall, asked: ExecCommit) -> WorkspaceChanges:
        """Commit what differs in a session that lives here; it may wait for a person.

        Raises:
            SessionLost: It is gone, or was believed to be; `SessionBusy`, `UnknownSession`.
            WorkspaceLimit: It is more than one commit takes.
            VersionConflict: Storage has changed meanwhile; all that differs is named.
            ApprovalDenied, ApprovalExpired: A person was asked.
        """
        decided = await patiently(lambda: self._records.one(syscall))
        if decided is None:
            found = await self._host.changes(syscall.owner, asked)
            taken = [one for one in found.files if not one.is_refused]
            files = tuple(one.shown for one in found.files)
            if not taken:
                return _told(asked.session, CommitRecord((), files, found.ignored), ())
            record = CommitRecord(changes_of_storage(taken), files, found.ignored)
            decided = await patiently(lambda: self._records.decided(syscall, record))
        return await self._ended(syscall, asked, decided, self._host.files(syscall.owner, asked))

    async def without_session(
        self, syscall: Syscall, asked: ExecCommit, error: SessionLost | UnknownSession
    ) -> WorkspaceChanges:
        """Go on with a commit whose session cannot be reached: `error` says why.

        Raises:
            SessionLost, UnknownSession: It was not begun, and nothing of it is written.
        """
        decided = await patiently(lambda: self._records.decided(syscall, CommitRecord()))
        if not _is_begun(decided):
            raise type(error)(
                f"{error.message}; {NOTHING_WRITTEN}", field=error.field, remedy=error.remedy
            ) from error
        return await self._ended(syscall, asked, decided, None)

    async def _ended(
        self, syscall: Syscall, asked: ExecCommit, decided: CommitRecord, files: SessionFiles | None
    ) -> WorkspaceChanges:
        if decided.done is not None:
            return decided.done
        if not decided.writes:
            raise SessionLost(
                "another worker could not reach this session, and has said so",
                field="body.session",
                remedy=OPEN_ANEW,
            )
        result = await self._calls.call(syscall, StorageApply(decided.writes), "commit")
        if not isinstance(result, Entries) or len(result.entries) != len(decided.writes):
            raise ModuleError("storage did not say what was written")
        if files is not None:
            await files.committed(syscall, decided.writes, result.entries)
        done = _told(asked.session, decided, result.entries)
        await patiently(lambda: self._records.end(syscall, done))
        return done


def _is_begun(decided: CommitRecord) -> bool:
    return bool(decided.writes) or decided.done is not None


def _told(session: str, decided: CommitRecord, entries: Iterable[Entry]) -> WorkspaceChanges:
    """Return what became of the files; `entries`: what storage has of those that it took."""
    written = iter(entries)
    shown = [
        replace(one, outcome="left") if one.state == "refused" else _written(one, next(written))
        for one in decided.files
    ]
    return WorkspaceChanges(session, tuple(shown), decided.ignored)


def _written(one: ChangedFile, entry: Entry) -> ChangedFile:
    if one.state == "removed":
        return replace(one, outcome="deleted")
    return replace(
        one,
        outcome="written",
        version=entry.version,
        size_bytes=entry.size_bytes,
        sha256=entry.sha256,
    )
