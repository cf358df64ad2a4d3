"""The typed wrapper of block.lua: each method is one step, atomic in Redis.

Times are microseconds of Unix time. Every method raises `UnknownBlock` where Redis has no such
block (a fresh one, or after FLUSHALL), `RedisUnavailable` where it does not answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from aios_broker.contract.memory import DEFAULT_BLOCK_BYTES, BlockStat
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Answer, Argument, Connection

MEMORY_LIBRARY = "aiosmem1"  # the number changes with the arguments, as the queues' does
US_PER_S = 1_000_000

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
    """One agent's block. `now_us` is for tests: 0 is the server's own clock."""

    def __init__(self, functions: Functions, keys: Keys, key: str, *, now_us: int = 0) -> None:
        self._functions = functions
        self._keys = keys
        self._key = key
        self.now_us = now_us

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

    async def look(self) -> str:
        """Return a token: what is put with it is refused if the note has changed meanwhile."""
        answer = await self._call("look")
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

        Returns the token to put them with once that is committed.
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

    async def notes(self, note_ids: Sequence[str]) -> list[bytes | None]:
        """Return notes as they stand here, without a reference to them."""
        answer = await self._call("notes", *note_ids)
        return [None if data is None else bytes(data) for data in answer[1:]]

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
        answer = await self._functions.call(step, self._keys, (self._key, self.now_us, *arguments))
        if answer[0] == b"unknown":
            raise UnknownBlock(self._key)
        return answer
