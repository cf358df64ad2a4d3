"""Programs of turns whose contexts do not all fit: the server's own order, then the kernel's."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from msgspec import Struct

from aios_broker.contract.llm import LlmChat, Message
from benchmarks.gpu.kernel import Kernel, Rules, kernel_on
from benchmarks.gpu.results import Results, mean, quantile, say
from benchmarks.gpu.target import Target, all_bounded, text_of
from benchmarks.gpu.worker import Note, read_notes

DIRECT = "direct"  # the server's own order
LEAST_S = 20.0  # an arm is not begun with less
MARGIN_S = 5.0
# Real tool calls: half within 0.3 s, a tenth over 13.6 s, as a log-normal; cut at a cap.
PAUSE_MEDIAN_S, PAUSE_SIGMA = 0.3, 2.976


@dataclass(frozen=True, slots=True)
class Load:
    """What kind of programs come."""

    programs: int
    turns: int
    turn_tokens: int  # that a turn adds, its answer included
    new_tokens: int
    rate: float  # programs that arrive per second
    pause_cap_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Program:
    """An agent's run: turns that each add to the conversation, with pauses between."""

    name: str
    arrives_s: float
    pieces: tuple[tuple[str, str], ...]  # what the user adds, and what stands for the answer
    pauses_s: tuple[float, ...]

    def messages(self, turn: int) -> tuple[Message, ...]:
        """Return the conversation at a turn: stand-ins for answers, so that all arms ask alike."""
        found: list[Message] = []
        for asked, answered in self.pieces[:turn]:
            found += [Message("user", asked), Message("assistant", answered)]
        return (*found, Message("user", self.pieces[turn][0]))


class Arm(Struct, frozen=True):
    """What came of one order. Times in seconds."""

    programs_done: int
    of: int
    completion_mean_s: float | None
    completion_p50_s: float | None
    completion_p99_s: float | None
    turn_mean_s: float | None
    turn_p99_s: float | None
    seconds: float
    output_tokens_per_s: float
    suspensions: int
    prompt_tokens_read: int
    prompt_tokens_cached: int
    retracted: int


Ask = Callable[[Program, LlmChat], Awaitable[tuple[int, int]]]  # its tokens, its suspensions


def programs_of(target: Target, load: Load) -> list[Program]:
    """Return the programs, which follow from the seed."""
    rng, arrives_s = random.Random(f"{load.seed}/programs"), 0.0
    made = []
    for number in range(load.programs):
        arrives_s += rng.expovariate(load.rate)
        pieces = tuple(
            (
                text_of(target.core, rng, _around(rng, load.turn_tokens) - load.new_tokens),
                text_of(target.core, rng, load.new_tokens),
            )
            for _ in range(load.turns)
        )
        drawn = (rng.lognormvariate(math.log(PAUSE_MEDIAN_S), PAUSE_SIGMA) for _ in pieces[1:])
        pauses = tuple(min(load.pause_cap_s, pause) for pause in drawn)
        made.append(Program(f"program-{number}", arrives_s, pieces, pauses))
    return made


def _around(rng: random.Random, tokens: int) -> int:
    return round(tokens * rng.uniform(0.8, 1.2))


class Run:
    """One order, from the first arrival to the last answer."""

    def __init__(self, load: Load, ask: Ask) -> None:
        self._load = load
        self._ask = ask
        self._began_s = time.monotonic()
        self.turns_s: list[float] = []
        self.tokens = 0
        self.suspensions = 0

    async def live(self, program: Program) -> float:
        """Be one program; return how long it took from its arrival."""
        due_s = self._began_s + program.arrives_s
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        for turn in range(self._load.turns):
            asked_s = time.monotonic()
            body = LlmChat(program.messages(turn), max_tokens=self._load.new_tokens)
            tokens, suspensions = await self._ask(program, body)
            self.tokens += tokens
            self.suspensions += suspensions
            self.turns_s.append(time.monotonic() - asked_s)
            if turn < self._load.turns - 1:
                await asyncio.sleep(program.pauses_s[turn])
        return time.monotonic() - due_s


@dataclass(frozen=True, slots=True)
class Orders:
    """Which orders are compared, and how."""

    arms: tuple[str, ...]  # `direct`, or the name of a policy
    slots: int  # of the kernel's workers together
    workers: int
    quantum_tokens: int
    arm_limit_s: float


async def pressure(target: Target, results: Results, load: Load, orders: Orders) -> None:
    """Run the same programs in each order."""
    programs = programs_of(target, load)
    last = [len(target.core.render(each.messages(load.turns - 1))) for each in programs]
    largest = max(last) + load.new_tokens
    about = {
        "programs": load.programs,
        "turns": load.turns,
        "largest_context_tokens": largest,
        "contexts_that_fit": round(target.contexts_that_fit(largest, orders.slots), 1),
        "kernel_slots": orders.slots,
        "arrivals_over_s": round(programs[-1].arrives_s, 1),
    }
    results.tell("load", about)
    for name in orders.arms:
        if results.left_s < LEAST_S:
            say(f"{name}: no time left")
            continue
        limit_s = min(orders.arm_limit_s, results.left_s - MARGIN_S)
        results.tell(name, await _arm(target, load, orders, programs, name, limit_s))


def read_by(notes: Sequence[Note]) -> Counter[str]:
    """Return the tokens that workers' cores have read and found, resumptions included."""
    answered = [note for note in notes if note.made]
    cached = sum(note.cached for note in answered)
    known = sum(note.prompt + note.resume for note in answered)
    return Counter(prefill_compute=known - cached, prefill_cache=cached)


async def _arm(
    target: Target,
    load: Load,
    orders: Orders,
    programs: list[Program],
    name: str,
    limit_s: float,
) -> dict[str, object]:
    await target.refresh()
    kernel: Kernel | None = None
    async with AsyncExitStack() as stack:
        if name == DIRECT:

            async def ask(_: Program, body: LlmChat) -> tuple[int, int]:
                return len((await target.ask(body)).ids), 0

        else:
            places = target.places(orders.slots, orders.workers)
            rules = Rules(name, orders.quantum_tokens)
            kernel = running = await stack.enter_async_context(kernel_on(places, rules))

            async def ask(program: Program, body: LlmChat) -> tuple[int, int]:
                result, timings = await running.chat(body, program.name, limit_s)
                return result.usage.output_tokens, timings.suspensions

        before, run, began_s = await target.counters(), Run(load, ask), time.monotonic()
        took = [
            seconds
            for seconds in await all_bounded([run.live(each) for each in programs], limit_s)
            if seconds is not None
        ]
        seconds = time.monotonic() - began_s
        counted = await target.counters()
        counted.subtract(before)
        if kernel is not None and not counted.total():
            counted = read_by(read_notes(kernel.notes))
    arm = Arm(
        programs_done=len(took),
        of=len(programs),
        completion_mean_s=mean(took),
        completion_p50_s=quantile(took, 0.5),
        completion_p99_s=quantile(took, 0.99),
        turn_mean_s=mean(run.turns_s),
        turn_p99_s=quantile(run.turns_s, 0.99),
        seconds=round(seconds, 1),
        output_tokens_per_s=round(run.tokens / seconds, 1),
        suspensions=run.suspensions,
        prompt_tokens_read=counted["prefill_compute"],
        prompt_tokens_cached=counted["prefill_cache"],
        retracted=counted["retracted"],
    )
    return {field: getattr(arm, field) for field in arm.__struct_fields__}
