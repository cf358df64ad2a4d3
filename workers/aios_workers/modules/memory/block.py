"""Blocks in Redis over notes in Postgres: reads that need no database, and swaps.

`Block` is the typed wrapper of block.lua: each method is one step, atomic in Redis.

Times are microseconds of Unix time. A block that Redis has not (a fresh one, or after FLUSHALL) is
opened first, by the function that it was given; without one it is an `UnknownBlock`. What takes
notes out needs no open block: in one that is closed there are none.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec
from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, Metric

from aios_broker.contract.errors import Unavailable
from aios_broker.contract.memory import BlockStat, Note
from aios_broker.postgres.store import AgentRow, Store
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Answer, Argument, Connection
from aios_workers.modules.memory.note import BlockShape, body_of, shape_of_block

logger = logging.getLogger(__name__)

MEMORY_LIBRARY = "aiosmem2"  # the number changes with the arguments, as the queues' does
US_PER_S = 1_000_000
OPEN_TRIES = 2  # a block that vanishes more often: somebody empties Redis in a loop

_decoder = msgspec.json.Decoder(Note)

PutAnswer = Literal["ok", "over", "stale", "full"]


@cache
def memory_source() -> str:
    """Return the Lua source of the library."""
    text = (files("aios_workers.modules.memory") / "block.lua").read_text()
    return f"#!lua name={MEMORY_LIBRARY}\n{text}"


def memory_functions(connection: Connection) -> Functions:
    """Return what calls the library's steps over a connection."""
    return Functions(connection, MEMORY_LIBRARY, memory_source)


class UnknownBlock(Exception):
    """Redis has no block of this owner: it is to be opened first."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A note as the block holds it."""

    id: str
    version: int
    size_bytes: int
    expires_us: int  # 0: never
    data: bytes


@dataclass(frozen=True, slots=True)
class Victim:
    """A note that is to leave, in the version that was seen."""

    id: str
    version: int


def block_key(tenant: str, agent: str, agent_id: int) -> str:
    """Return the name of an agent's block: of this agent alone, also after Postgres began anew."""
    material = "\x1f".join((tenant, agent, str(agent_id))).encode()
    return hashlib.blake2b(material, digest_size=16).hexdigest()


class Block:
    """One agent's block; `reopen` opens it where Redis has none."""

    now_us = 0  # for tests: 0 is the server's own clock

    def __init__(
        self,
        functions: Functions,
        keys: Keys,
        key: str,
        reopen: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._functions = functions
        self._keys = keys
        self._key = key
        self._reopen = reopen

    async def open(self, shape: BlockShape, whose: str) -> bool:
        """Make the block or change its shape; tell whether it is above its high watermark."""
        answer = await self._call(
            "open",
            shape.limit_bytes,
            shape.k,
            round(shape.correlated_s * US_PER_S),
            shape.high,
            shape.low,
            whose,
        )
        return bool(answer[1])

    async def read(self, note_id: str) -> bytes | None:
        """Return a resident note, which is a hit and a reference; None: it is not here."""
        answer = await self._call("read", note_id)
        return bytes(answer[1]) if answer[0] == b"hit" else None

    async def token(self) -> str:
        """Return a token: what is put with it is refused if the note has changed meanwhile."""
        answer = await self._call("token")
        return str(answer[1].decode())

    async def put(self, note: Resident, token: str, *, fault: bool) -> PutAnswer:
        """Take a note in. `over`: done, and the block is above its high watermark now."""
        answer = await self._call(
            "put",
            note.id,
            token,
            note.version,
            note.size_bytes,
            note.expires_us,
            int(fault),
            note.data,
        )
        word: PutAnswer = answer[0].decode()
        return "over" if word == "ok" and answer[1] else word

    async def invalidate(self, note_ids: Iterable[str], *, forget: bool = False) -> str:
        """Take notes out that are about to change; the caller holds their rows' locks.

        Returns the token to put them with once that is committed; none where it is not open.
        """
        answer = await self._call("invalidate", int(forget), *note_ids)
        return str(answer[1].decode())

    async def drop(self) -> int:
        """Take everything out, histories as well; return how many notes it was."""
        return int((await self._call("drop"))[1])

    async def victims(self, *, goes_on: bool) -> list[Victim]:
        """Return those that are to leave, first ones first; they stay until they are freed.

        None above the high watermark, or, where a swap goes on, above the low one.
        """
        while (answer := await self._call("victims", int(goes_on)))[0] == b"more":
            continue
        found = answer[1:]
        return [Victim(found[i].decode(), int(found[i + 1])) for i in range(0, len(found), 2)]

    async def free(self, victims: Sequence[Victim]) -> int:
        """Take out those that have not changed since they were named; return how many."""
        flat: list[Argument] = []
        for victim in victims:
            flat += (victim.id, victim.version)
        return int((await self._call("free", *flat))[1])

    async def touch(self, note_ids: Sequence[str]) -> int:
        """Count a reference to each that is resident; return how many are."""
        return int((await self._call("touch", *note_ids))[1])

    async def stat(self, *, notes_in_all: int = 0) -> BlockStat:
        """Return the block's numbers; of `notes_in_all` those that are not here are swapped."""
        f = (await self._call("stat"))[1:]
        return BlockStat(
            limit_bytes=int(f[0]),
            used_bytes=int(f[1]),
            resident_notes=int(f[2]),
            swapped_notes=max(0, notes_in_all - int(f[2])),
            hits=int(f[3]),
            faults=int(f[4]),
            swaps=int(f[5]),
            k=int(f[6]),
            correlated_s=int(f[7]) / US_PER_S,
            high=float(f[8]),
            low=float(f[9]),
        )

    async def _call(self, step: str, *arguments: Argument) -> Answer:
        values = (self._key, self.now_us, *arguments)
        answer = await self._functions.call(step, self._keys, values)
        for _ in range(OPEN_TRIES):
            if answer[0] != b"unknown" or self._reopen is None:
                break
            await self._reopen()
            answer = await self._functions.call(step, self._keys, values)
        if answer[0] == b"unknown":
            raise UnknownBlock(self._key)
        return answer


class Blocks:
    """The blocks of all agents, as one worker reaches them."""

    def __init__(self, store: Store, functions: Functions, keys: Keys) -> None:
        self._store = store
        self._functions = functions
        self._keys = keys
        self._counts: Counter[str] = Counter(hits=0, faults=0, swaps=0, stale_puts=0)

    def of(self, owner: AgentRow) -> Block:
        """Return an agent's block; it is opened where Redis has none."""
        return self._block(owner, opens=True)

    async def read(self, owner: AgentRow, note_id: str) -> Note | None:
        """Return a note that is in its owner's block; it was referenced by that."""
        data = await self.of(owner).read(note_id)
        if data is None:
            return None
        self._counts["hits"] += 1
        return _decoder.decode(data)

    async def fault_in(self, owner: AgentRow, note: Note) -> PutAnswer:
        """Put a note whose row the caller holds a share lock on; `make_room` has to follow.

        Where the block was lost just now it is not put: the next read does it.
        """
        block = self._block(owner, opens=False)
        self._counts["faults"] += 1
        try:
            return await self._put(block, note, await block.token(), fault=True)
        except UnknownBlock:
            return "stale"

    async def keep(self, owner: AgentRow, note: Note, token: str) -> None:
        """Put what was committed; where Redis cannot take it now, the next read will."""
        if not token:  # the block was not open when the note was written
            return
        block = self.of(owner)
        try:
            answer = await self._put(block, note, token, fault=False)
            await self.make_room(owner, answer)
            if answer == "full":
                await self.make_room(owner, await self._put(block, note, token, fault=False))
        except Unavailable as error:
            logger.warning("note %s stays out of its block: %s", note.id, error)

    async def make_room(self, owner: AgentRow, answer: PutAnswer) -> None:
        """Swap notes out where a put went above the high watermark, or found no room."""
        if answer in ("over", "full"):
            await self.swap(owner, goes_on=answer == "full")

    async def configure(self, owner: AgentRow) -> None:
        """Give the block the shape that Postgres has for it, and swap what is too much."""
        async with self._store.as_steward() as cursor:
            shape = await shape_of_block(cursor, owner, "FOR SHARE")
            block = self._block(owner, opens=False)
            over = await block.open(shape, f"{owner.tenant}/{owner.name}")
        if over:
            await self.swap(owner)

    async def swap(self, owner: AgentRow, *, goes_on: bool = False) -> int:
        """Move notes out, down to the low watermark; return how many.

        Only what was committed is ever put, so Postgres has them all. It may stop at any point:
        what is left stays in the block, and the next put above the watermark goes on.
        """
        freed, block = 0, self.of(owner)
        while victims := await block.victims(goes_on=goes_on):
            count = await block.free(victims)
            self._counts["swaps"] += count
            freed += count
            goes_on = True
            if not count:  # another worker frees the same ones, or they change all the time
                break
        return freed

    def metrics(self) -> Iterable[Metric]:
        """Yield what this worker did with blocks."""
        help_of = {
            "hits": "Reads served from a block.",
            "faults": "Reads that fetched a note from Postgres into its block.",
            "swaps": "Notes that this worker moved out of a block.",
            "stale_puts": "Puts that came too late: the note had changed.",
        }
        for name, text in help_of.items():
            family = CounterMetricFamily(f"aios_memory_{name}", text)
            family.add_metric([], self._counts[name])
            yield family

    async def _put(self, block: Block, note: Note, token: str, *, fault: bool) -> PutAnswer:
        expires_us = 0 if note.expires_at is None else max(1, round(note.expires_at * US_PER_S))
        resident = Resident(
            note.id, note.version, body_of(note).size_bytes, expires_us, msgspec.json.encode(note)
        )
        answer = await block.put(resident, token, fault=fault)
        self._counts["stale_puts"] += answer == "stale"
        return answer

    def _block(self, owner: AgentRow, *, opens: bool) -> Block:
        key = block_key(owner.tenant, owner.name, owner.id)
        reopen = (lambda: self.configure(owner)) if opens else None
        return Block(self._functions, self._keys, key, reopen)


class MemoryTotals(Struct, frozen=True):
    """What is in Redis of agents' memories now, and what happened since it was started."""

    blocks: int = 0
    notes: int = 0  # resident
    used_bytes: int = 0
    hits: int = 0
    faults: int = 0
    swaps: int = 0


async def memory_totals(connection: Connection, keys: Keys) -> MemoryTotals:
    """Return the totals of all blocks, for tools that watch; two short reads."""
    blocks = await connection.execute("HLEN", keys.own("memory:blocks"))
    names = ("notes", "used", "hits", "faults", "swaps")
    values = await connection.execute("HMGET", keys.own("memory:totals"), *names)
    return MemoryTotals(int(blocks), *(int(value or 0) for value in values))
