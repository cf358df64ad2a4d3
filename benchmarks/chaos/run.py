"""One chaos run: a kernel of its own, clients, faults, a drain, and the check."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import redis

from aios_broker.config import KernelConfig
from aios_local.supervisor.kernel import EmbeddedKernel
from aios_local.supervisor.programs import Program, kernel_programs
from benchmarks.chaos import checker, rest
from benchmarks.chaos.checker import Bounds, Broken, Evidence, Story, gather
from benchmarks.chaos.crowd import Crowd
from benchmarks.chaos.evidence import (
    CORE,
    diaries_of,
    expected_ids,
    moves_of,
    records_of,
    with_worker_recoveries,
)
from benchmarks.chaos.history import Log, Struck
from benchmarks.chaos.injector import Injector
from benchmarks.chaos.plan import VARIABLE, Plan
from benchmarks.chaos.schedule import GROUPS, LEASE_S, SCHEDULER_LEASE_S, Fault, schedule

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("broker", "workers", "sdk")
MAX_LOSSES = 4
REST_S = 60.0  # after the last client has left
AMNESIA_S = 2.0  # of a Redis that syncs every second
MEMORY_BYTES = 1280 * 1024**2  # of address space, for a worker that is poisoned
OUTAGE_S = 2.0  # beyond a server's absence, until everybody has noticed that it is back
KERNEL_SETTINGS = {
    "AIOS_LLM_SLOTS": str(CORE.slots),
    "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": str(CORE.decode_tokens_per_s),
    "AIOS_SIMULATED_CORE_END_PROBABILITY": str(CORE.end_probability),
    "AIOS_WORKER_LEASE_S": str(LEASE_S),
    "AIOS_SCHEDULER_LEASE_S": str(SCHEDULER_LEASE_S),
    "AIOS_QUANTUM_S": "0.1",
    "AIOS_MAX_LOSSES": str(MAX_LOSSES),
    "AIOS_SNAPSHOT_BUDGET_BYTES": "20000",  # so little that some are spilled
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a run is to be like."""

    length_s: float
    seed: int = 0
    groups: tuple[str, ...] = GROUPS
    clients: int = 3
    gap_s: float = 2.5  # between two faults, on average
    pause_s: float = 0.05  # of a client's program, between two syscalls
    wait_s: float = 40.0  # the bound of waiting
    patience_s: float = 150.0  # at the end, for all that was asked to be heard


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    wish: Wish
    stories: Mapping[str, Story]
    strikes: list[Struck]
    broken: list[Broken]
    excused: int  # syscalls that a crash of Redis may have touched in its unsynced second
    wall_s: float

    @property
    def acknowledged(self) -> int:
        """How many syscalls the kernel acknowledged."""
        return sum(story.is_known for story in self.stories.values())


def run_chaos(wish: Wish, folder: Path, environment: Mapping[str, str]) -> Outcome:
    """Run it; the folder keeps the logs."""
    began = time.monotonic()
    history = folder / "history"
    history.mkdir()
    variables = {**environment, **KERNEL_SETTINGS, "PYTHONPATH": _path(environment)}
    config = KernelConfig(
        state_dir=folder / "state",
        llm_core="simulated",
        llm_slots=CORE.slots,
        llm_workers=2,
        tool_workers=2,
        state_workers=0,
        log_level="warning",
    )
    kernel = EmbeddedKernel(config, programs=programs(wish, config), inherited=variables)
    with Log(history / "strikes.jsonl") as log, kernel:
        crowd = Crowd(_clients(wish, kernel), variables, history)
        injector = Injector(kernel, crowd, log, wish.seed)
        with crowd:
            _storm(wish, injector)
            codes = crowd.leave(wish.patience_s)
        left = _settled(kernel.redis_url, min(REST_S, wish.patience_s))
        left |= {f"{name} left with exit code": code for name, code in codes.items()}
        evidence = asyncio.run(_evidence(wish, kernel, history, injector, left))
    broken = checker.check(evidence)
    excused = sum(checker.forgotten(s, evidence.bounds) for s in evidence.stories.values())
    return Outcome(
        wish, evidence.stories, list(evidence.strikes), broken, excused, time.monotonic() - began
    )


def programs(wish: Wish, config: KernelConfig) -> tuple[Program, ...]:
    """Return the kernel's programs: the product's own, launched with the plan around them."""
    late = 0.05 if "messages" in wish.groups else 0.0
    step_s = 3600.0 if "clock" in wish.groups else 0.0
    worker = Plan(
        late_finish=late,
        late_after_s=1.5 * LEASE_S,
        clock_step_s=step_s,
        poison=True,
        memory_bytes=MEMORY_BYTES,
    )
    scheduler = Plan(clock_step_s=-step_s)
    migrate = next(one for one in kernel_programs(config) if one.name == "migrate")
    return (
        migrate,
        Program("scheduler", _launched(scheduler, "scheduler"), stage=1, ready="leading"),
        Program("standby", _launched(scheduler, "scheduler"), stage=1, ready="leading"),
        Program("llm", _launched(worker, "llm"), stage=2, count=2, ready="registered"),
        Program("tool", _launched(worker, "tool"), stage=2, count=2, ready="registered"),
    )


def _launched(plan: Plan, process: str) -> tuple[str, ...]:
    launch = (sys.executable, "-m", "benchmarks.chaos.launch", process)
    return ("/usr/bin/env", f"{VARIABLE}={plan.encode()}", *launch)


def _path(environment: Mapping[str, str]) -> str:
    """Return where the processes find the product: where this one has it, else this checkout."""
    roots = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
    return os.pathsep.join([*roots, *(str(ROOT / name) for name in PACKAGES), str(ROOT)])


def _clients(wish: Wish, kernel: EmbeddedKernel) -> dict[str, list[str]]:
    mischief = 0.05 if "messages" in wish.groups else 0.0
    dice = random.Random(f"clients/{wish.seed}")
    commands: dict[str, list[str]] = {}
    for number in range(1, wish.clients + 1):
        poisons = int(number == 1 and "poison" in wish.groups)
        commands[f"client-{number}"] = [
            "--url",
            kernel.redis_url,
            "--seed",
            str(dice.getrandbits(31)),
            "--sent-twice",
            str(mischief),
            "--lost",
            str(mischief / 2),
            "--pause-s",
            str(wish.pause_s),
            "--poisons",
            str(poisons),
        ]
    return commands


def _storm(wish: Wish, injector: Injector) -> None:
    """Strike as scheduled, for the length of the load."""
    over_at = time.monotonic() + wish.length_s
    faults: list[Fault] = schedule(
        wish.seed, wish.length_s, wish.groups, gap_s=wish.gap_s, clients=wish.clients
    )
    is_over: Callable[[], bool] = lambda: time.monotonic() > over_at  # noqa: E731
    injector.run(faults, is_over)
    while not is_over():
        time.sleep(0.1)


def _settled(url: str, limit_s: float) -> dict[str, int]:
    """Wait until the kernel is at rest; return what is left over when it does not come to."""
    until = time.monotonic() + limit_s
    with redis.Redis.from_url(url) as client:
        while True:
            left = rest.left_over(client) | rest.connections(client)
            left |= {"journal": n} if (n := client.xlen("rq:aios:journal")) else {}
            if not left or time.monotonic() > until:
                return left
            time.sleep(0.1)


async def _evidence(
    wish: Wish, kernel: EmbeddedKernel, history: Path, injector: Injector, left: dict[str, int]
) -> Evidence:
    records = records_of(history)
    stories = gather(records, await moves_of(kernel.database_url))
    strikes = [record for record in records if isinstance(record, Struck)]
    down = tuple(
        (strike.at, strike.until + OUTAGE_S)
        for strike in strikes
        if strike.victim in ("redis", "postgres", "scheduler", "standby")
    )
    bounds = Bounds(
        wait_s=wish.wait_s,
        max_losses=MAX_LOSSES,
        down=_merged(down),
        amnesia=tuple((at - AMNESIA_S, at + 0.1) for at in injector.forgetful),
    )
    programs = {s.planned.program for s in stories.values() if s.planned.kind == "expand"}
    diaries = await diaries_of(kernel.redis_url, programs)
    with redis.Redis.from_url(kernel.redis_url) as client:
        epoch = int(client.hget("rq:aios:scheduler", "epoch") or 0)
    return Evidence(
        stories,
        with_worker_recoveries(strikes, stories),
        await expected_ids(stories),
        diaries,
        left,
        bounds,
        epoch,
    )


def _merged(windows: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """Return the windows without overlaps."""
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(windows):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return tuple(merged)
