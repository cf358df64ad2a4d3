"""The typed wrapper of block.lua: each method is one step, atomic in Redis.

Times are microseconds of Unix time. A block that Redis has not (a fresh one, or after FLUSHALL) is
opened first, by the function that it was given; without one it is an `UnknownBlock`. What takes
notes out needs no open block: in one that is closed there are none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from msgspec import Struct

from aios_broker.contract.memory import DEFAULT_BLOCK_BYTES, BlockStat
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Answer, Argument, Connection

MEMORY_LIBRARY = "aiosmem2"  # the number changes with the arguments, as the queues' does
US_PER_S = 1_000_000
OPEN_TRIES = 2  # a block that vanishes more often: somebody empties Redis in a loop

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
class BlockShape:
    """How large a block is, and how its notes are chosen to leave it."""

    limit_bytes: int = DEFAULT_BLOCK_BYTES
    k: int = 2
    correlated_s: float = 1.0
    high: float = 0.8
    low: float = 0.6


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
