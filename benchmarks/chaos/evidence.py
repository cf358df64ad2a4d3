"""Collect what a run left: logs, ledger, contexts; and generate every answer once more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from aios_broker.client.redis_transport import RedisTransport
from aios_broker.client.session import Session
from aios_broker.contract.llm import ContextGet, Message
from aios_broker.contract.reply import ChatResult, ContextResult
from aios_broker.contract.syscall import Syscall, new_id
from aios_broker.ledger.history import Archive
from aios_broker.ledger.journal import Position, Transition
from aios_broker.postgres.database import Database
from aios_broker.queues.keys import Keys
from aios_workers.llm.core import GenerationRequest, Sampling
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from benchmarks.chaos.checker import Move, Story
from benchmarks.chaos.client import AGENT
from benchmarks.chaos.history import Record, Struck, read_logs

CORE = SimulatedCoreConfig(slots=2, decode_tokens_per_s=150.0, end_probability=0.005)


def records_of(folder: Path) -> list[Record]:
    """Return the logs of all processes of a run."""
    return read_logs(sorted(folder.glob("*.jsonl")))


async def moves_of(database_url: str) -> list[Move]:
    """Return the whole journal, as the ledger keeps it, in order."""
    database = Database(database_url, name="chaos")
    archive, moves, position = Archive(database, Keys().prefix), list[Move](), Position()
    try:
        are_all = False
        while not are_all:
            changes, are_all = await archive.after(position)
            moves += map(_move, changes)
            position = changes[-1].position if changes else position
    finally:
        await database.aclose()
    return moves


def _move(change: Transition) -> Move:
    return Move(
        change.position.ms / 1000,
        change.event,
        change.job_id,
        change.attempt,
        change.who,
        change.detail,
    )


async def diaries_of(url: str, programs: Iterable[str]) -> dict[str, Sequence[str]]:
    """Return the entries of each program's context, as the kernel has them."""
    session = Session(RedisTransport(url, "chaos-reader"))
    await session.open()
    try:
        asked = {
            program: session.submit(
                session.identified(Syscall(new_id(), AGENT, ContextGet(context=program)))
            )
            for program in programs
        }
        found: dict[str, Sequence[str]] = {}
        for program, pending in asked.items():
            await asyncio.wait_for(asyncio.shield(pending.ended), 60)
            assert pending.reply is not None
            result = pending.reply.unwrap()
            assert isinstance(result, ContextResult)
            found[program] = [message.content for message in result.messages]
    finally:
        await session.aclose()
    return found


async def expected_ids(
    stories: Mapping[str, Story], config: SimulatedCoreConfig = CORE
) -> dict[str, tuple[int, ...]]:
    """Generate each chat that was answered once more, here, without any interruption."""
    core = SimulatedCore(replace(config, decode_tokens_per_s=0.0))
    expected: dict[str, tuple[int, ...]] = {}
    for syscall_id, story in stories.items():
        if story.planned.tokens and any(
            isinstance(reply.result, ChatResult) for reply in story.replies
        ):
            expected[syscall_id] = await _generated(core, story)
    return expected


async def _generated(core: SimulatedCore, story: Story) -> tuple[int, ...]:
    planned = story.planned
    request = GenerationRequest(
        request_id=planned.id,
        prompt_ids=core.render((Message("user", planned.text),)),
        max_tokens=planned.tokens,
        sampling=Sampling(temperature=planned.temperature, seed=planned.seed),
    )
    return tuple([token async for step in core.generate(request) for token in step.ids])


def with_worker_recoveries(strikes: Iterable[Struck], stories: Mapping[str, Story]) -> list[Struck]:
    """Fill in, for each worker that was killed, when the last of its jobs ran again."""
    by_pid: dict[str, list[tuple[Story, int]]] = {}
    for story in stories.values():
        for place, move in enumerate(story.moves):
            if move.event == "claim":
                by_pid.setdefault(move.who.split(".")[-2], []).append((story, place))
    filled: list[Struck] = []
    for strike in strikes:
        if strike.kind == "kill worker":
            waits = [
                wait_s
                for story, place in by_pid.get(str(strike.pid), ())
                if (wait_s := _wait_for_next(story, place, strike.at)) is not None
            ]
            strike = Struck(
                strike.at,
                strike.kind,
                strike.victim,
                strike.pid,
                strike.until,
                max(waits, default=None),
            )
        filled.append(strike)
    return filled


def _wait_for_next(story: Story, place: int, died_at: float) -> float | None:
    """Return how long after a worker's death the job it had claimed ran again, or ended."""
    claimed, *later = story.moves[place:]
    if not later or claimed.at > died_at or later[0].at < died_at:
        return None
    again = next((m for m in later if m.event not in ("reclaim", "move", "hold", "release")), None)
    return again.at - died_at if again else None
