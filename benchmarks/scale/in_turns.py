"""One side of `benchmarks.against ... decisions`: a long queue, decided on when it is told to.

    python -P in_turns.py POLICY AGENTS WAITING      then, line by line on standard input:
    N                                                so many ticks; it answers with their figures

Said first is an empty object: the queue stands in the policy's order. The benchmark is this
checkout's; the broker whose decisions are timed is that of the environment it runs in.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys

import redis
import uvloop

from benchmarks.queues.run import open_ground
from benchmarks.scale.decisions import Driver, Timings

WARM_UP_TICKS = 100


async def main(url: str, policy: str, agents: int, waiting: int) -> None:
    """Fill the queue, then answer line by line until standard input ends."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        pid = int(client.info("server")["process_id"])
    async with Driver.open(url, pid) as driver:
        await driver.fill(agents, waiting)
        queue = await driver.follow(policy, Timings(pid))
        await driver.ticks(queue, WARM_UP_TICKS)
        say({})
        while line := await asyncio.to_thread(sys.stdin.readline):
            kinds = await driver.ticks(queue, int(line))
            decisions = kinds.pop("decision")
            figures = {
                "decision p50 ms": statistics.median(decisions.wall),
                "of it the scheduler's CPU ms": statistics.median(decisions.python),
                "of it Redis' CPU ms": statistics.median(decisions.redis),
            }
            others = {f"{kind} p50 ms": statistics.median(of.wall) for kind, of in kinds.items()}
            say(figures | others)


def say(figures: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    name, *sizes = sys.argv[1:]
    with open_ground(sys.executable, ledger=False, say=print) as ground:
        uvloop.run(main(ground.redis_url, name, *map(int, sizes)))
