"""Whether one agent stalls the others: a flood, and another tenant's small calls timed beside it.

    python -m benchmarks.floods                          all floods, some ten minutes
    python -m benchmarks.floods --only searches,notes --json out.json
    python -m benchmarks.floods --list

An embedded kernel on the simulated core. A process of its own floods it as one tenant (or as
twenty); seven small calls of another tenant go on beside it, each over and over, and the longest of
each counts. It may take a second, or three times what it took with nothing beside, whichever is
more. What the flood itself takes of the processors is part of it, at a lower priority.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec import Struct, to_builtins

from aios_broker.config import KernelConfig
from aios_broker.contract.access import ObjectRef
from aios_broker.contract.errors import KernelError
from aios_broker.contract.syscall import new_id
from aios_broker.postgres.store import Store, only_row
from aios_local.supervisor.kernel import EmbeddedKernel
from aios_sdk import AsyncAgent
from benchmarks.provenance import ROOT, commit_of, today
from tests.waiting import wait_until_async

FLOOD_S = 14.0  # that the small calls are timed for
BEGIN_S = 300.0  # for a flood to begin, at its low priority, on a machine that is busy
WARM_S = 2.0  # of the flood before them
PAUSE_S = 0.2  # between two small calls of a kind
SETTLE_S = 20.0  # after a flood, until it is as before
LIMIT_S = 60.0  # of one small call
MOST_S = 1.0
TIMES_IDLE = 3.0
ANSWER_TOKENS = 8  # of a small chat
SETTINGS = {
    "AIOS_LLM_CORE": "simulated",
    "AIOS_LLM_SLOTS": "4",
    "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": "100",
    "AIOS_SIMULATED_CORE_END_PROBABILITY": "0",
}
WORDS = [f"{a}{b}{c}" for a in "bdfglmnprst" for b in "aeiou" for c in "bdfglmnprst"]
CHANCE = random.Random(1)

Flooder = Callable[[AsyncAgent], Awaitable[object]]  # one call of the flood


@dataclass(frozen=True, slots=True)
class Flood:
    """What one tenant, or some, do without an end."""

    words: str
    call: Flooder
    tenants: int = 1
    at_once: int = 32  # calls of all tenants together
    notes: int = 0  # that each agent has before; with `is_waiting` they have no vectors yet
    is_waiting: bool = False
    once: int = 0  # calls that are submitted at the beginning, and no more


class Longest(Struct, frozen=True):
    """What a small call took beside a flood, in s."""

    call: str
    calls: int
    median_s: float
    longest_s: float
    idle_s: float  # the longest with nothing beside

    @property
    def most_s(self) -> float:
        """What it may take."""
        return max(MOST_S, TIMES_IDLE * self.idle_s)


def prose(characters: int) -> str:
    """Return so many characters of words that are no two times the same."""
    words = "".join(f"{CHANCE.choice(WORDS)} " for _ in range(characters // 4 + 1))
    return words[:characters]


async def searched(agent: AsyncAgent) -> object:
    """Search by a query as long as may be."""
    return await agent.memory.search(prose(8_192), k=100)


async def schema(agent: AsyncAgent) -> object:
    """Ask for an answer under a schema that nobody has compiled before."""
    names = [f"{CHANCE.choice(WORDS)}{CHANCE.randrange(10**6)}" for _ in range(20)]
    choice = {"type": "string", "pattern": f"^({'|'.join(prose(60).split())}){{1,40}}$"}
    deep: dict[str, object] = {"type": "object", "properties": dict.fromkeys(names, choice)}
    for name in names[:5]:
        deep = {"anyOf": [deep, {"type": "array", "items": deep, "title": name, "maxItems": 50}]}
    return await _formed(agent, {"type": "json", "json_schema": deep})


async def pattern(agent: AsyncAgent) -> object:
    """Ask for an answer under a pattern or a grammar that nobody has compiled before."""
    some = prose(CHANCE.randrange(100, 1_000)).split()
    if CHANCE.random() < 0.5:
        text = "(" + "|".join(f"{word}{{1,50}}" for word in some) + "){1,200}"
        return await _formed(agent, {"type": "regex", "pattern": text})
    rules = "\n".join(f'r{at}: "{word}" r{at + 1}? | r{at + 1}' for at, word in enumerate(some))
    grammar = f'start: r0+\n{rules}\nr{len(some)}: "end"'
    return await _formed(agent, {"type": "grammar", "grammar": grammar})


async def _formed(agent: AsyncAgent, form: dict[str, object]) -> object:
    return await agent.llm.chat("hi", max_tokens=ANSWER_TOKENS, format=form)


async def compared(agent: AsyncAgent) -> object:
    """Compare two versions that are slow to compare."""
    path = f"diff-{new_id()}.txt"
    for first in (True, False):
        lines = "".join(f"{CHANCE.randrange(140):x}\n" for _ in range(80_000))
        await (agent.storage.create(path, lines) if first else agent.storage.append(path, lines))
    return await agent.storage.diff(path, a=1, b=2)


async def metadata(agent: AsyncAgent) -> object:
    """Keep metadata as deep, and as many, as may be."""
    deep: object = "end"
    for _ in range(30):
        deep = {"a": [deep, *range(2_000)]}
    return await agent.memory.add("deep", metadata={"deep": deep})


async def refused(agent: AsyncAgent) -> object:
    """Ask for what is another's: each such call is a line of the audit log."""
    return await agent.access.revoke_token("audited")


async def written(agent: AsyncAgent) -> object:
    """Write a file of 3 MB."""
    return await agent.storage.write(f"large-{new_id()}.txt", prose(3_000_000))


async def embedded(agent: AsyncAgent) -> object:
    """Ask for as many vectors as may be."""
    return await agent.llm.embed([prose(200) for _ in range(2_048)])


async def listed(agent: AsyncAgent) -> object:
    """List as much as may be, and look for what is in none of it."""
    if CHANCE.random() < 0.5:
        return await agent.memory.list(limit=1_000)
    return await agent.memory.list(limit=1_000, metadata={"none": CHANCE.random()})


async def checked(agent: AsyncAgent) -> object:
    """Have rights and groups looked at."""
    return await asyncio.gather(
        agent.access.check(ObjectRef("file", f"/{new_id()}", owner=agent.options.agent), "read"),
        agent.access.groups(),
        agent.access.audit(limit=1_000),
    )


async def nothing(_agent: AsyncAgent) -> object:
    """Do nothing."""
    return await asyncio.sleep(0.1)


FLOODS = {
    "nothing": Flood("nothing beside", nothing, at_once=1),
    "searches": Flood("long searches", searched, notes=2_000),
    "tenants": Flood("long searches of 20 tenants", searched, tenants=20, at_once=80, notes=200),
    "notes": Flood(
        "30,000 notes wait for their vectors",
        lambda agent: agent.memory.add(prose(200)),
        notes=30_000,
        is_waiting=True,
    ),
    "large": Flood("notes of 256 KiB", lambda agent: agent.memory.add(prose(256 * 1024))),
    "schemas": Flood("hard JSON schemas, each new", schema),
    "patterns": Flood("hard patterns and grammars", pattern),
    "diffs": Flood("diffs of slow texts", compared, at_once=16),
    "lists": Flood("lists of 1,000 notes", listed, notes=5_000),
    "metadata": Flood("deep metadata", metadata),
    "writes": Flood("files of 3 MB", written, at_once=8),
    "embeds": Flood("vectors of 2,048 texts", embedded),
    "refused": Flood("refused calls, each in the audit log", refused),
    "rights": Flood("rights, groups, the audit log", checked),
    # The last: to cancel so many takes a while, which the next would measure.
    "chats": Flood(
        "26,000 chats wait",
        lambda agent: agent.llm.chat("hi", max_tokens=ANSWER_TOKENS),
        once=26_000,
    ),
}

# The flood's own process.


async def flood(name: str, url: str) -> None:
    """Flood until standard input ends; then say how many calls had which outcome."""
    what = FLOODS[name]
    outcomes: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        agents = [
            await stack.enter_async_context(agent_of(url, name, number))
            for number in range(what.tenants)
        ]
        if what.once:
            floods = [_once(agents[0], what)]
        else:
            each = itertools.islice(itertools.cycle(agents), what.at_once)
            floods = [_flood(agent, what.call, outcomes) for agent in each]
        asking = asyncio.gather(*floods)
        print("begun", flush=True)  # on a machine that is busy that takes a while
        reading = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait([asking, reading], return_when=asyncio.FIRST_COMPLETED)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    print(json.dumps(outcomes), flush=True)


def agent_of(url: str, flood_name: str, number: int) -> AsyncAgent:
    """Return an agent of a flood, in a tenant of its own."""
    name = f"{flood_name}-{number}"
    return AsyncAgent(name, url=url, tenant=f"flood-{name}")


async def _flood(agent: AsyncAgent, call: Flooder, outcomes: Counter[str]) -> None:
    while True:
        try:
            await call(agent)
            outcomes["done"] += 1
        except KernelError as error:
            outcomes[error.code] += 1
            await asyncio.sleep(0.01)  # what is refused at the door would else be all it does


async def _once(agent: AsyncAgent, what: Flood) -> None:
    calls = [what.call(agent) for _ in range(what.once)]  # submitted when they are called
    await asyncio.gather(*calls, return_exceptions=True)


# The kernel, and who is timed.


def small_calls(agent: AsyncAgent) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return the seven calls that are timed."""
    numbers = itertools.count()
    return {
        "llm.chat": lambda: agent.llm.chat("hi", max_tokens=ANSWER_TOKENS),
        "llm.embed": lambda: agent.llm.embed("a short text"),
        "memory.add": lambda: agent.memory.add(f"note {next(numbers)} of the day"),
        "memory.search": lambda: agent.memory.search("a note of the day"),
        "storage.write": lambda: agent.storage.write(f"day/{next(numbers)}.txt", "short"),
        "access.whoami": agent.access.whoami,
        "tool.echo": lambda: agent.tool.echo("hi"),
    }


async def timed(agent: AsyncAgent, for_s: float) -> dict[str, list[float]]:
    """Make the small calls for some time; return how long each of them took."""
    until_s = time.monotonic() + for_s

    async def repeat(call: Callable[[], Awaitable[object]]) -> list[float]:
        took = []
        while not took or time.monotonic() < until_s:
            began_s = time.monotonic()
            try:
                await call()
            except KernelError as error:
                print(f"    a small call failed: {error}", flush=True)
                took.append(LIMIT_S)
                continue
            took.append(time.monotonic() - began_s)
            await asyncio.sleep(PAUSE_S)
        return took

    calls = small_calls(agent)
    found = await asyncio.gather(*(repeat(call) for call in calls.values()))
    return dict(zip(calls, found, strict=True))


_COPIED = """
    INSERT INTO note (id, tenant_id, owner_id, content, words, model_id, vector)
    SELECT md5(n.id || number), n.tenant_id, n.owner_id, n.content, n.words,
           CASE WHEN NOT %(waits)s THEN n.model_id END, CASE WHEN NOT %(waits)s THEN n.vector END
      FROM note n JOIN agent a ON a.id = n.owner_id, generate_series(1, %(times)s) number
     WHERE a.name = %(agent)s
"""
_WITHOUT_VECTOR = """
    SELECT count(*) AS notes FROM note n JOIN agent a ON a.id = n.owner_id
     WHERE a.name = %s AND n.model_id IS NULL
"""
_GONE = "DELETE FROM note USING agent a WHERE a.id = owner_id AND a.name = %s"
SEEDS = 20  # notes that the others are copies of


async def prepare(url: str, store: Store, name: str) -> None:
    """Give the flood's agents their notes."""
    what = FLOODS[name]
    seeds = max(1, SEEDS // what.tenants)
    for number in range(what.tenants if what.notes else 0):
        async with agent_of(url, name, number) as agent:
            length = 200 if what.is_waiting else 2_000
            await asyncio.gather(*(agent.memory.add(prose(length)) for _ in range(seeds)))
            await wait_until_async(
                partial(_has_vectors, store, agent.options.agent), timeout_s=LIMIT_S
            )
        values = {"agent": agent.options.agent, "waits": what.is_waiting}
        async with store.as_steward() as cursor:
            await cursor.execute(_COPIED, {**values, "times": what.notes // seeds})


async def _has_vectors(store: Store, agent: str) -> bool:
    async with store.as_steward() as cursor:
        await cursor.execute(_WITHOUT_VECTOR, (agent,))
        return int((await only_row(cursor)).notes) == 0


@asynccontextmanager
async def flooded(url: str, name: str, outcomes: Counter[str]) -> AsyncIterator[None]:
    """Have a flood for the length of a block, which begins when it is under way."""
    process = await asyncio.to_thread(_begin, name, url)
    try:
        assert process.stdout is not None
        await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), BEGIN_S)
        await asyncio.sleep(WARM_S)
        yield
        said, _ = await asyncio.to_thread(process.communicate, timeout=SETTLE_S)
        outcomes.update(json.loads(said or "{}"))
    except subprocess.TimeoutExpired:
        print(f"    the flood {name} did not end in {SETTLE_S:g} s and is killed", flush=True)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _begin(name: str, url: str) -> subprocess.Popen[str]:
    words = (sys.executable, "-m", "benchmarks.floods", "--flood", name, "--url", url)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), *sys.path))}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        ("nice", "-n", "10", *words), stdin=pipe, stdout=pipe, cwd=ROOT, env=environment, text=True
    )


async def run(kernel: EmbeddedKernel, names: Sequence[str]) -> dict[str, list[Longest]]:
    """Measure beside each flood in turn."""
    url, found = kernel.redis_url, {}
    idle: dict[str, float] = {}
    store = Store(kernel.database_url, name="floods", limit_s=LIMIT_S)
    async with AsyncAgent("small", url=url, tenant="quiet") as plain:
        agent = plain.with_options(timeout_s=LIMIT_S)
        async with AsyncAgent("audited", url=url, tenant="flood-refused-0") as audited:
            await audited.memory.add("there is such an agent")
        await timed(agent, WARM_S)
        for name in names:
            await prepare(url, store, name)
            outcomes: Counter[str] = Counter()
            async with flooded(url, name, outcomes):
                took = await timed(agent, FLOOD_S)
            if not idle:
                idle = {call: max(each) for call, each in took.items()}
            found[name] = [_longest(call, each, idle[call]) for call, each in took.items()]
            show(name, found[name], outcomes)
            await settle(agent, store, name)
    await store.aclose()
    return found


def _longest(call: str, took: Sequence[float], idle_s: float) -> Longest:
    median_s = sorted(took)[len(took) // 2]
    return Longest(call, len(took), round(median_s, 3), round(max(took), 3), round(idle_s, 3))


async def settle(agent: AsyncAgent, store: Store, name: str) -> None:
    """Take away what a flood has left; return when the kernel answers as before, or in any case."""
    for number in range(FLOODS[name].tenants):
        async with store.as_steward() as cursor:
            await cursor.execute(_GONE, (f"{name}-{number}",))
    until_s = time.monotonic() + SETTLE_S
    while time.monotonic() < until_s:
        took = await timed(agent, WARM_S)
        if max(itertools.chain(*took.values())) < MOST_S / 2:
            return


def show(name: str, rows: Sequence[Longest], outcomes: Counter[str]) -> None:
    """Print what was found beside one flood."""
    did = ", ".join(f"{count} {code}" for code, count in outcomes.most_common())
    print(f"{FLOODS[name].words} (the flood's calls: {did or 'not one ended'})")
    for row in rows:
        mark = "" if row.longest_s <= row.most_s else f"  above {row.most_s:.2f}"
        print(
            f"  {row.call:14} {row.calls:4} calls, median {row.median_s:6.3f} s, "
            f"longest {row.longest_s:6.3f} (idle {row.idle_s:5.3f}){mark}",
            flush=True,
        )


def measure(names: Sequence[str]) -> dict[str, list[Longest]]:
    """Run a kernel of its own, and flood it."""
    settings = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **SETTINGS}
    with tempfile.TemporaryDirectory(prefix="aios-floods-") as folder:
        config = KernelConfig(state_dir=Path(folder), llm_core="simulated")
        with EmbeddedKernel(config, inherited=settings) as kernel:
            return asyncio.run(run(kernel, names))


def main(words: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="such as searches,notes; nothing goes first")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--flood", choices=FLOODS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.list:
        print("\n".join(f"{name:10} {flood.words}" for name, flood in FLOODS.items()))
        return
    if options.flood:
        asyncio.run(flood(options.flood, options.url))
        return
    wanted = options.only.split(",") if options.only else list(FLOODS)
    unknown = [name for name in wanted if name not in FLOODS]
    if unknown:
        parser.error(f"no such flood: {', '.join(unknown)}; see --list")
    names = list(dict.fromkeys(("nothing", *wanted)))
    found = measure(names)
    above = [
        f"{row.call} beside {name}"
        for name in found
        for row in found[name]
        if row.longest_s > row.most_s
    ]
    print("above: " + (", ".join(above) or "nothing"))
    if options.json is not None:
        report = {"date": today(), "commit": commit_of(ROOT), "processors": os.cpu_count()}
        options.json.write_text(json.dumps({**report, "floods": to_builtins(found)}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
