"""A worker dies at each step of what memory does: no note is lost, doubled or read stale.

A step is one call of Redis or one transaction of Postgres. The worker dies before it is sent, or
when it is done and not heard of. Another worker then runs the syscall again, as the kernel has it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from aios_broker.contract.errors import NotFound
from aios_broker.contract.memory import (
    BlockStat,
    MemoryAdd,
    MemoryAlloc,
    MemoryClear,
    MemoryGet,
    MemoryHistory,
    MemoryList,
    MemoryRemove,
    MemoryStat,
    MemoryUpdate,
    Note,
)
from aios_broker.contract.syscall import Body, Syscall, new_id
from aios_broker.postgres.store import AgentRow, Cursor, Store
from aios_broker.queues.functions import Functions
from aios_broker.redis.connection import Answer
from aios_workers.modules.memory.block import Blocks, memory_functions
from aios_workers.modules.services import Services
from tests.state_scene import NeverAsks, StateScene, state_scene

BLOCK_BYTES = 4096
NOTES = 9  # of 500 bytes: what the last swap left, filled up again; one more goes above
MOST_STEPS = 40
# What each act takes at least: a token, a transaction, a put; of a swap also who leaves,
# freeing them, and looking whether it is enough.
LEAST_STEPS = {"adding": 6, "reading": 7, "updating": 3, "removing": 2, "clearing": 2}


class Died(BaseException):
    """The worker is dead; nothing of it runs any more."""


class Steps:
    """Counts steps, and dies at one of them."""

    def __init__(self, die_at: int, moment: str) -> None:
        self.count = 0
        self._die_at = die_at
        self._moment = moment

    def begin(self) -> int:
        self.count += 1
        if self.count == self._die_at and self._moment == "before":
            raise Died
        return self.count

    def end(self, number: int) -> None:
        if number == self._die_at and self._moment == "after":
            raise Died


class MortalFunctions(Functions):
    """Calls of Redis, each a step."""

    def __init__(self, real: Functions, steps: Steps) -> None:
        self.real = real
        self.connection = real.connection
        self._steps = steps

    async def call(self, *args: Any, **kwargs: Any) -> Answer:  # noqa: ANN401
        number = self._steps.begin()
        answer = await self.real.call(*args, **kwargs)
        self._steps.end(number)
        return answer


class MortalStore(Store):
    """Transactions of Postgres, each a step; they share the real store's pool."""

    def __init__(self, real: Store, steps: Steps) -> None:
        self.__dict__.update(real.__dict__)
        self._real = real
        self._steps = steps

    @asynccontextmanager
    async def as_agent(
        self, agent: AgentRow, *locks: str, limit_s: float | None = None
    ) -> AsyncIterator[Cursor]:
        number = self._steps.begin()
        async with self._real.as_agent(agent, *locks, limit_s=limit_s) as cursor:
            yield cursor
        self._steps.end(number)

    @asynccontextmanager
    async def as_steward(self, *, limit_s: float | None = None) -> AsyncIterator[Cursor]:
        number = self._steps.begin()
        async with self._real.as_steward(limit_s=limit_s) as cursor:
            yield cursor
        self._steps.end(number)


def mortal(scene: StateScene, steps: Steps) -> StateScene:
    """Return the scene as another worker sees it, which dies at a step."""
    services: Services = replace(scene.services, store=MortalStore(scene.store, steps))
    functions = MortalFunctions(memory_functions(services.functions.connection), steps)
    blocks = Blocks(services.store, functions, services.keys)
    return replace(scene, services=replace(services, blocks=blocks))


async def filled(scene: StateScene) -> dict[str, str]:
    """Fill a block up to its high watermark; return what notes say."""
    await scene.ask("ann", MemoryAlloc(BLOCK_BYTES, correlated_s=0.0))
    said = {}
    for number in range(NOTES):
        note = await scene.ask("ann", MemoryAdd(f"{number} " + "x" * 500))
        said[note.id] = note.content
    return said


async def checked(scene: StateScene, said: dict[str, str]) -> None:
    """Every note is there once, and says what was acknowledged last, from wherever it is read."""
    for note_id, content in reversed(said.items()):  # first the newest, before reads swap it out
        assert (await scene.ask("ann", MemoryGet(note_id))).content == content
        assert (await scene.ask("ann", MemoryGet(note_id))).content == content
        history = await scene.ask("ann", MemoryHistory(note_id))
        assert [one.version for one in history.versions] == list(
            range(len(history.versions), 0, -1)
        )
    listed = await scene.ask("ann", MemoryList(limit=1000))
    assert sorted(note.id for note in listed.notes) == sorted(said)
    stat: BlockStat = await scene.ask("ann", MemoryStat())
    assert stat.resident_notes + stat.swapped_notes == len(said)
    assert stat.used_bytes <= stat.limit_bytes


Act = Callable[[dict[str, str]], tuple[Body, Callable[[Any, dict[str, str]], None]]]


def adding(_said: dict[str, str]) -> tuple[Body, Callable[[Any, dict[str, str]], None]]:
    """Add a note: the block goes above its watermark, and a swap follows."""

    def expect(note: Note, said: dict[str, str]) -> None:
        said[note.id] = "new " + "y" * 500

    return MemoryAdd("new " + "y" * 500), expect


def reading(said: dict[str, str]) -> tuple[Body, Callable[[Any, dict[str, str]], None]]:
    """Read the note that was added first: it was swapped out, and comes back."""
    first = next(iter(said))

    def expect(note: Note, said: dict[str, str]) -> None:
        assert note.content == said[first]

    return MemoryGet(first), expect


def updating(said: dict[str, str]) -> tuple[Body, Callable[[Any, dict[str, str]], None]]:
    """Change a note that is resident."""
    last = list(said)[-1]

    def expect(note: Note, said: dict[str, str]) -> None:
        said[note.id] = "changed"

    return MemoryUpdate(last, content="changed"), expect


def removing(said: dict[str, str]) -> tuple[Body, Callable[[Any, dict[str, str]], None]]:
    """Delete a note that is resident."""
    last = list(said)[-1]

    def expect(_result: object, said: dict[str, str]) -> None:
        del said[last]

    return MemoryRemove(last), expect


def clearing(_said: dict[str, str]) -> tuple[Body, Callable[[Any, dict[str, str]], None]]:
    """Delete all notes."""

    def expect(_result: object, said: dict[str, str]) -> None:
        said.clear()

    return MemoryClear(), expect


async def die_and_run_again(
    scene: StateScene, syscall: Syscall, die_at: int, moment: str
) -> tuple[Any, bool]:
    """Run a syscall on a worker that dies, then on another; return the result and if it died."""
    steps = Steps(die_at, moment)
    run: Awaitable[Any] = mortal(scene, steps).run(syscall)
    try:
        return await run, False
    except Died:
        return await scene.run(syscall), True


@pytest.mark.parametrize("act", [adding, reading, updating, removing, clearing])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_death_at_any_step_loses_and_doubles_nothing(
    redis_url: str, database_url: str, act: Act, moment: str
) -> None:
    died_at = 0
    async with state_scene(redis_url, database_url, approvals=NeverAsks) as scene:
        for die_at in range(1, MOST_STEPS):
            scene.tenant = f"tenant-{act.__name__}-{moment}-{die_at}"
            said = await filled(scene)
            body, expect = act(said)
            syscall = scene.syscall("ann", body, id=new_id())
            result, died = await die_and_run_again(scene, syscall, die_at, moment)
            expect(result, said)
            await checked(scene, said)
            if not died:
                break
            died_at = die_at
    assert died_at >= LEAST_STEPS[act.__name__], died_at
    assert die_at < MOST_STEPS - 1


async def test_what_was_removed_is_not_brought_back_by_a_death(
    redis_url: str, database_url: str
) -> None:
    """The note leaves its block before the deletion is committed; nobody puts it back after."""
    async with state_scene(redis_url, database_url, approvals=NeverAsks) as scene:
        note = cast("Note", await scene.ask("ann", MemoryAdd("gone")))
        syscall = scene.syscall("ann", MemoryRemove(note.id))
        await die_and_run_again(scene, syscall, 3, "after")
        with pytest.raises(NotFound):
            await scene.ask("ann", MemoryGet(note.id))
