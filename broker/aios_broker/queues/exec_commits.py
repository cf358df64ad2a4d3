"""What an exec.commit writes, kept for as long as anybody may run it; written by tool workers.

A commit's worker may die, and the session with it: what was to be written is then known from here
alone. It is kept before anything is asked of storage. Who comes first decides, that it writes this
or that it writes nothing; whoever runs it later, or believed to run it still, follows that.
"""

import hashlib

import msgspec
from msgspec import Struct

from aios_broker.contract.storage import FileChange
from aios_broker.contract.syscall import Syscall
from aios_broker.contract.workspace import ChangedFile, WorkspaceChanges
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection

SPARE_S = 60.0  # beyond the deadline of the syscall


class CommitRecord(Struct, frozen=True, omit_defaults=True):
    """One commit as it was decided. Fields of a newer release are read past."""

    writes: tuple[FileChange, ...] = ()  # none: it writes nothing, now and later
    files: tuple[ChangedFile, ...] = ()  # that differed: those that are written, and the refused
    ignored: int = 0
    done: WorkspaceChanges | None = None  # what it ended with; what it wrote is not kept by then


_decoder = msgspec.json.Decoder(CommitRecord)


class CommitRecords:
    """The commits of one deployment."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._keys = keys

    async def one(self, asked: Syscall) -> CommitRecord | None:
        """Return what was decided of a commit; None: nothing yet."""
        found = await self._connection.execute("GET", self._of(asked))
        return None if found is None else _decoder.decode(found)

    async def decided(self, asked: Syscall, record: CommitRecord) -> CommitRecord:
        """Decide this of a commit, unless something was decided before; return what counts."""
        kept_ms = str(round((asked.deadline_s + SPARE_S) * 1000))
        data = msgspec.json.encode(record)
        while True:
            key = self._of(asked)
            if await self._connection.execute("SET", key, data, "NX", "PX", kept_ms):
                # As everybody reads it: what is made from it has to be the same, byte by byte.
                return _decoder.decode(data)
            if (found := await self.one(asked)) is not None:
                return found

    async def end(self, asked: Syscall, done: WorkspaceChanges) -> None:
        """Note what a commit ended with, in the place of what it was to write."""
        data = msgspec.json.encode(CommitRecord(done=done))
        await self._connection.execute("SET", self._of(asked), data, "XX", "KEEPTTL")

    def _of(self, asked: Syscall) -> str:
        """Of this very syscall: an id may come again, with other words or of somebody else."""
        said = msgspec.json.encode((asked.tenant, asked.agent, asked.body))
        digest = hashlib.blake2b(said, digest_size=8).hexdigest()
        return self._keys.own(f"exec_commit:{asked.id}:{digest}")  # String: JSON of its record
