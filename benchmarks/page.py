"""The page with a large kernel behind it: how soon each view shows, what following it costs.

    python -m benchmarks.page                        2,000 agents, 100,000 waiting, 10,000 parked
    python -m benchmarks.page --waiting 20000 --follow-s 5 --only fleet
    python -m benchmarks.page --chromium --follow-s 8     in a browser instead: some 4 minutes

A kernel of its own whose workers take nothing, filled by the queue's steps themselves, without a
scheduler once it is filled; some syscalls are submitted all the time, so that there is something to
follow. Each view is asked for over HTTP, then watched by one tab and by ten, as the page's script
does it; the processor time is that of the API, Redis and Postgres, less what the three used while
nobody watched.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from pathlib import Path

import httpx
from msgspec import Struct, to_builtins

from aios_broker.contract.syscall import new_id
from aios_broker.contract.tokens import digest, new_token
from aios_broker.postgres.store import Store
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.records import JobMetadata, PolicyRow, Submission, Suspension
from aios_broker.queues.tokens import Identity, Tokens
from aios_broker.redis.connection import Connection
from aios_kernel_api.page.login import COOKIE
from benchmarks.page_browser import Opened, opened_views
from benchmarks.provenance import ROOT, commit_of, today
from benchmarks.queues.run import open_ground
from benchmarks.scale.report import quantiles
from benchmarks.scale.run import Kernel
from tests.queue_user import submitted

BATCH = 500
TENANTS = 8
ARRIVALS_PER_S = 20
LOADS = 7
TABS = (1, 10)
WATCHED = ("api", "redis", "postgres")
WAIT_S = 120.0
LEASE_S = 3600.0
SHOWS_WITHIN_S = 1.0
FOLLOWS_WITHIN = 5.0  # per cent of a processor
# A view, and the parts that its page follows.
VIEWS: dict[str, tuple[str, ...]] = {
    "/": ("programs",),
    "/?state=waiting&page=20": ("programs?state=waiting&page=20",),
    "/?tenant=tenant-7&agent=agent-7": ("programs?tenant=tenant-7&agent=agent-7",),
    "/?tenant=tenant-3": ("programs?tenant=tenant-3",),
    "/fleet": ("fleet",),
    "/approvals": ("approvals",),
    "/approvals?state=all": ("approvals?state=all",),
    "/agents": (),
    "/quotas": (),
    "/grants": (),
    "/audit": ("audit",),
}
_APPROVALS = """
    INSERT INTO approval (id, tenant_id, agent_id, job_id, module, kind, operation, arguments,
                          arguments_sha256, asked_sha256, what, objects, state, expires_at)
    SELECT md5(job), a.tenant_id, a.id, job, 'storage', 'storage.delete', 'delete',
           jsonb_build_object('path', '/notes/' || job || '.md'), md5(job), md5(job),
           'delete /notes/' || job || '.md', '[]', 'waiting', now() + interval '1 day'
      FROM unnest(%s::text[], %s::text[], %s::text[]) AS asked (job, tenant, agent)
      JOIN tenant t ON t.name = asked.tenant
      JOIN agent a ON a.tenant_id = t.id AND a.name = asked.agent
"""


class Shown(Struct, frozen=True):
    """How soon a view shows, and what it costs to follow."""

    view: str
    bytes: int
    first_ms: float  # until its first byte, p50
    whole_ms: float  # p50
    longest_ms: float
    cpu: dict[int, dict[str, float]]  # by tabs: per cent of a processor, by process

    @property
    def is_met(self) -> bool:
        """Tell whether it is what was promised."""
        return self.longest_ms <= SHOWS_WITHIN_S * 1000 and all(
            sum(used.values()) <= FOLLOWS_WITHIN for used in self.cpu.values()
        )


class Filler:
    """Fills the queues, and goes on submitting."""

    def __init__(self, redis: Connection, agents: int) -> None:
        functions = Functions(redis)
        self._llm = ModuleQueue(functions, "llm")
        self._storage = ModuleQueue(functions, "storage")
        self._control = Control(functions)
        self._agents = agents
        self._chance = random.Random(1)

    async def fill(self, waiting: int) -> None:
        """Let as many wait as are wanted."""
        for module in ("llm", "storage"):
            await self._control.set_policy(module, PolicyRow(max_waiting=10_000_000))
        for _ in range(0, waiting, BATCH):
            await submitted(self._llm, [self._job("llm.chat") for _ in range(BATCH)])

    async def park(self, parked: int) -> list[tuple[str, str, str]]:
        """Let as many be parked; return their ids, tenants and agents."""
        found = []
        for _ in range(0, parked, BATCH):
            jobs = [self._job("storage.delete") for _ in range(BATCH)]
            await submitted(self._storage, jobs)
            found += [(job.job_id, job.metadata.tenant, job.metadata.agent) for job in jobs]
            left = BATCH
            while left:
                leases = await self._storage.claim("bench", ClaimRequest(min(50, left), LEASE_S))
                assert leases, "the fleet takes nothing"
                parks = [Suspension(lease, None, 0.001, reason="park") for lease in leases]
                await self._storage.suspend("bench", parks, ClaimRequest(0, LEASE_S))
                left -= len(leases)
        return found

    async def go_on(self) -> None:
        """Submit some each second, until it is cancelled."""
        while True:
            await submitted(self._llm, [self._job("llm.chat") for _ in range(ARRIVALS_PER_S // 2)])
            await asyncio.sleep(0.5)

    def _job(self, kind: str) -> Submission:
        number = self._chance.randrange(self._agents)
        metadata = JobMetadata(
            f"agent-{number}",
            kind,
            f"task-{number}",
            f"tenant-{number % TENANTS}",
            self._chance.randint(0, 19),
        )
        return Submission(new_id(), b"[]" * 200, metadata, "", deadline_s=LEASE_S)


async def fill(kernel: Kernel, redis: Connection, store: Store, options: Options) -> Filler:
    """Make the agents, what waits, and what waits for a person."""
    for number in range(options.agents):
        await store.vouched(f"agent-{number}", f"tenant-{number % TENANTS}")
    filler = Filler(redis, options.agents)
    await redis.execute("DEL", "rq:suspended")
    parked = await filler.park(options.parked)
    await redis.execute("SET", "rq:suspended", 1)
    async with store.as_steward() as cursor:
        await cursor.execute(_APPROVALS, [list(column) for column in zip(*parked, strict=True)])
        await cursor.execute("ANALYZE")
    await filler.fill(options.waiting)
    await asyncio.to_thread(kernel.settle)
    return filler


async def measure(
    client: httpx.AsyncClient, kernel: Kernel, view: str, options: Options, quiet: dict[str, float]
) -> Shown:
    """Ask for a view, then follow it."""
    firsts, wholes, length = [], [], 0
    for _ in range(LOADS):
        began_s = time.perf_counter()
        async with client.stream("GET", view) as answer:
            assert answer.status_code == 200, (view, answer.status_code)
            parts = answer.aiter_bytes()
            length = len(await anext(parts))
            firsts.append((time.perf_counter() - began_s) * 1000)
            async for part in parts:
                length += len(part)
        wholes.append((time.perf_counter() - began_s) * 1000)
    cpu = {}
    for tabs in TABS:
        async with followed(client, ("head", *VIEWS[view]), tabs):
            used = await asyncio.to_thread(kernel.cpu_over, options.follow_s)
        cpu[tabs] = {name: round(max(0.0, used[name] - quiet[name]), 1) for name in WATCHED}
    whole = quantiles(wholes)
    return Shown(view, length, quantiles(firsts).p50, whole.p50, whole.longest, cpu)


@asynccontextmanager
async def followed(
    client: httpx.AsyncClient, parts: Sequence[str], tabs: int
) -> AsyncIterator[None]:
    """Have a view open in some tabs, for the length of a block."""
    query = [("part", part) for part in parts]

    async def read() -> None:
        async with client.stream("GET", "/live", params=query) as stream:
            assert stream.status_code == 200, stream.status_code
            async for _ in stream.aiter_bytes():
                pass

    tasks = [asyncio.create_task(read()) for _ in range(tabs)]
    await asyncio.sleep(2.0)  # what is sent first is loading, not following
    try:
        yield
    finally:
        assert not any(task.done() for task in tasks), "a stream has ended"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Options(Struct, frozen=True):
    """What is measured."""

    agents: int
    waiting: int
    parked: int
    follow_s: float
    only: str | None
    keep_s: float
    chromium: bool = False


async def run(
    kernel: Kernel, redis_url: str, database_url: str, options: Options
) -> Sequence[Shown | Opened]:
    """Fill the kernel and measure each view."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(aclosing(Connection(redis_url, name="aios-bench")))
        store = await stack.enter_async_context(aclosing(Store(database_url)))
        began_s = time.monotonic()
        filler = await fill(kernel, redis, store, options)
        say(f"filled in {time.monotonic() - began_s:.0f} s")
        kernel.stop(
            "scheduler"
        )  # its passes over the queue would come into one view and not another
        client = await stack.enter_async_context(logged_in(kernel, redis, redis_url, database_url))
        arrivals = asyncio.create_task(filler.go_on())
        stack.callback(arrivals.cancel)
        quiet = await asyncio.to_thread(kernel.cpu_over, options.follow_s)
        say(f"nobody watches: {quiet}")
        views = [view for view in VIEWS if options.only is None or options.only in view]
        found: list[Shown | Opened] = []
        if options.chromium:
            found += await in_browser(client, kernel, views, options)
        else:
            for view in views:
                found.append(shown := await measure(client, kernel, view, options, quiet))
                say(line_of(shown))
        assert not arrivals.done(), arrivals.exception()
        if options.keep_s:
            say(f"{client.base_url} stays for {options.keep_s:g} s")
            await asyncio.sleep(options.keep_s)
        return found


async def in_browser(
    client: httpx.AsyncClient, kernel: Kernel, views: Sequence[str], options: Options
) -> list[Opened]:
    """Open each view in Chromium, then follow it."""
    token = client.cookies[COOKIE]
    url = str(client.base_url).rstrip("/")

    def cpu_of_api(length_s: float) -> float:
        return sum(kernel.cpu_over(length_s)[name] for name in WATCHED)

    def tell(one: Opened) -> None:
        missed = one.longest_ms > SHOWS_WITHIN_S * 1000 or one.api > FOLLOWS_WITHIN
        say(
            f"{one.view:34} {one.rows:4} rows  shown {one.shown_ms:6.0f} ms, longest "
            f"{one.longest_ms:6.0f} ms  kernel {one.api:.1f} %, Chromium {one.chromium:.1f} %"
            f"{'  MISSED' if missed else ''}"
        )

    return await asyncio.to_thread(
        opened_views, url, token, views, cpu_of_api, options.follow_s, tell
    )


@asynccontextmanager
async def logged_in(
    kernel: Kernel, redis: Connection, redis_url: str, database_url: str
) -> AsyncIterator[httpx.AsyncClient]:
    """Start an API and yield a client of an operator."""
    with free_port() as port:
        pass
    kernel.start("api", sys.executable, "-P", "-m", "aios_kernel_api", AIOS_API_PORT=str(port))
    token = new_token()
    await Tokens(redis).put(digest(token), Identity("operator:bench", "", None, "operator"))
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", cookies={COOKIE: token}, timeout=WAIT_S
    ) as client:
        until_s = time.monotonic() + WAIT_S
        while True:
            try:
                (await client.get("/")).raise_for_status()
                break
            except httpx.ConnectError:
                if time.monotonic() > until_s:
                    raise
                await asyncio.sleep(0.2)
        print(f"token of an operator: {token}", file=sys.stderr)
        yield client


@contextmanager
def free_port():  # noqa: ANN201
    """Yield a port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def line_of(shown: Shown) -> str:
    """Return it in a line."""
    cost = "; ".join(
        f"{tabs} tab{'s' if tabs > 1 else ''} {sum(used.values()):.1f} % "
        f"({', '.join(f'{name} {share:.1f}' for name, share in used.items())})"
        for tabs, used in shown.cpu.items()
    )
    return (
        f"{shown.view:34} {shown.bytes / 1024:6.0f} KiB  first {shown.first_ms:6.0f} ms, whole "
        f"{shown.whole_ms:6.0f} ms, longest {shown.longest_ms:6.0f} ms  {cost}"
        f"{'' if shown.is_met else '  MISSED'}"
    )


def say(line: str) -> None:
    """Say it at once."""
    print(line, file=sys.stderr, flush=True)


def main(words: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--agents", type=int, default=2_000)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--parked", type=int, default=10_000)
    parser.add_argument("--follow-s", type=float, default=30.0)
    parser.add_argument("--only", help="views in whose address this stands")
    parser.add_argument("--keep-s", type=float, default=0.0, help="leave it open for a browser")
    parser.add_argument("--chromium", action="store_true", help="in a browser, not by HTTP")
    parser.add_argument("--json", type=Path)
    given = vars(parser.parse_args(words))
    path = given.pop("json")
    options = Options(**given)
    with open_ground(sys.executable, ledger=True, say=say) as ground, Kernel(ground) as kernel:
        assert ground.database_url is not None
        found = asyncio.run(run(kernel, ground.redis_url, ground.database_url, options))
    if path is not None:
        report = {"date": today(), "commit": commit_of(ROOT), "views": to_builtins(found)}
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
