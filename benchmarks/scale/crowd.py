"""A process full of agents: each with its own connections, each with syscalls that wait.

    python -P crowd.py FIRST AGENTS      then, line by line on standard input:
    submit N                             each agent submits N generations and goes on waiting
Says one JSON object when it is connected, and one after each command.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
import time

import uvloop

from aios_sdk import AsyncAgent, Call, ChatResult

CONNECT_AT_ONCE = 50
TENANTS = 8  # one alone may not fill the queue
SUBMIT_AT_ONCE = 20
PROMPT = "Summarise the following paragraph in one sentence, and name its subject. " * 3
OPEN_FILES = 20_000
DEADLINE_S = 3600.0


async def main(first: int, count: int) -> None:
    agents = [
        AsyncAgent(
            f"agent-{number}",
            tenant=f"tenant-{number % TENANTS}",
            url=os.environ["BENCH_REDIS"],
            program=f"task-{number}",
        )
        for number in range(first, first + count)
    ]
    began_s = time.perf_counter()
    for start in range(0, count, CONNECT_AT_ONCE):
        await asyncio.gather(*(agent.open() for agent in agents[start : start + CONNECT_AT_ONCE]))
    say(agents=count, seconds=time.perf_counter() - began_s)
    chance = random.Random(first)
    waiting: list[Call[ChatResult]] = []
    while line := await asyncio.to_thread(sys.stdin.readline):
        number = int(line.split()[1])
        began_s = time.perf_counter()
        for start in range(0, count, SUBMIT_AT_ONCE):
            batch = [
                call
                for agent in agents[start : start + SUBMIT_AT_ONCE]
                for call in submitted(agent, number, chance)
            ]
            await asyncio.gather(*(call.accepted() for call in batch))
            waiting += batch
        say(waiting=len(waiting), seconds=time.perf_counter() - began_s)


def submitted(agent: AsyncAgent, number: int, chance: random.Random) -> list[Call[ChatResult]]:
    """Submit some generations of one agent, with nice values of all kinds."""
    return [
        agent.with_options(nice=chance.randint(0, 19), deadline_s=DEADLINE_S).llm.chat.start(
            PROMPT, max_tokens=16
        )
        for _ in range(number)
    ]


def say(**metadata: float) -> None:
    sys.stdout.write(json.dumps(metadata) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    uvloop.run(main(*map(int, sys.argv[1:])))
