"""Tools with limits and locks: never above them, and nobody waits for what is not his.

Without a sandbox: how many run at once is seen by files outside of it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.syscall import Need
from aios_broker.contract.tools import ParallelLimits, ToolCard, ToolResult, ToolRun
from aios_broker.queues.admission import Admission, Resource, Shortage
from aios_broker.queues.keys import Keys
from aios_broker.queues.tool_cards import ToolCards
from aios_broker.views.why import explain, surroundings
from aios_workers.modules.tool.needs import check_locks, needs_of
from tests.caller import Caller, WorkerProcess
from tests.scheduler_scene import scheduler
from tests.tool_scene import ToolScene
from tests.waiting import wait_until_async

pytestmark = pytest.mark.timeout(120)
FREE_WITHIN_S = 15.0  # after its worker was killed, on a machine that others use

FUNCTIONS = '''
import os, time
from aios_sdk import tool, ParallelLimits


def inside(path: str, name: str, seconds: float) -> int:
    """Note how many run at once, by files that exist while they do."""
    mark = os.path.join(path, name + "-" + str(os.getpid()) + "-" + str(time.monotonic_ns()))
    open(mark, "w").close()
    try:
        time.sleep(seconds)
        return sum(each.startswith(name + "-") for each in os.listdir(path))
    finally:
        os.remove(mark)


@tool(parallel=ParallelLimits(tool=1))
def alone(path: str, seconds: float = 0.1) -> int:
    return inside(path, "alone", seconds)


@tool
def free(path: str, seconds: float = 0.01) -> int:
    return inside(path, "free", seconds)


@tool(parallel=ParallelLimits(agent=1))
def by_agent(path: str, name: str, seconds: float = 0.1) -> int:
    return inside(path, "agent" + name, seconds)


@tool(locks=("gpu0", "file:{name}"))
def locked(path: str, name: str, seconds: float = 0.1) -> int:
    return inside(path, "locked", seconds)


@tool(locks=("file:{name}",))
def file(path: str, name: str, seconds: float = 0.1) -> int:
    return inside(path, "file" + name, seconds)
'''
NAMES = ("alone", "free", "by_agent", "locked", "file")


@pytest.fixture
def scene(tmp_path: Path) -> ToolScene:
    scene = ToolScene(tmp_path)
    scene.module.write_text(FUNCTIONS)
    scene.describe(NAMES)
    (tmp_path / "marks").mkdir()
    return scene


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    async with aclosing(Caller(redis_url)) as user:
        yield user


def call(scene: ToolScene, tool: str, **arguments: object) -> ToolRun:
    return ToolRun(f"me/{tool}", {"path": str(scene.folder / "marks"), **arguments})


async def values(caller: Caller, ids: list[str]) -> list[object]:
    found = []
    for reply in await caller.hear_all(ids):
        result = reply.unwrap()
        assert isinstance(result, ToolResult)
        found.append(result.value)
    return found


async def test_one_with_a_limit_is_never_twice_at_once_and_the_others_do_not_wait_for_it(
    scene: ToolScene, caller: Caller
) -> None:
    slow = await caller.submit(*[call(scene, "alone", seconds=0.5) for _ in range(4)])
    quick = await caller.submit(*[call(scene, "free") for _ in range(40)])
    async with scene.worker(caller.url, tool_sandbox="none"):
        found = await values(caller, [*slow, *quick])

    assert found[:4] == [1, 1, 1, 1]  # as seen from inside the tool
    assert list(caller.replies)[-1] in slow  # who waits for it came last


async def test_who_says_nothing_of_what_it_needs_runs_above_no_limit(
    scene: ToolScene, caller: Caller
) -> None:
    bodies = [call(scene, "alone") for _ in range(4)]
    other = Need("tool", "me/free")
    ids = [
        *await caller.submit(*bodies, needs=()),
        *await caller.submit(*bodies, needs=(other,)),
    ]
    async with scene.worker(caller.url, tool_sandbox="none"):
        assert set(await values(caller, ids)) == {1}
    for syscall_id in ids:
        attempts = caller.replies[syscall_id][0].timings
        assert attempts is not None
        assert (attempts.slices, attempts.suspensions) == (1, 0)  # what it was lent for nothing


async def test_a_foreign_lock_that_a_caller_names_is_not_taken(
    scene: ToolScene, caller: Caller
) -> None:
    [job_id] = await caller.submit(call(scene, "free"), needs=(Need("lock", "gpu0"),))
    view = await caller.control.job(job_id)
    assert view is not None
    assert view.needs == ()


async def test_an_agent_has_its_own_places(scene: ToolScene, caller: Caller) -> None:
    ids = []
    for agent in ("ada", "bob"):
        bodies = [call(scene, "by_agent", name=agent) for _ in range(3)]
        ids += await caller.submit(*bodies, agent=agent)
    async with scene.worker(caller.url, tool_sandbox="none"):
        assert set(await values(caller, ids)) == {1}


async def test_locks_are_filled_from_arguments(scene: ToolScene, caller: Caller) -> None:
    ids = await caller.submit(
        *[call(scene, "locked", name=name) for name in ("a b", "c", "d")],
        *[call(scene, "file", name=name) for name in ("x", "x", "y", "y")],
    )
    async with scene.worker(caller.url, tool_sandbox="none"):
        assert set(await values(caller, ids)) == {1}


async def test_what_it_waits_for_and_who_has_it_is_told(scene: ToolScene, caller: Caller) -> None:
    admission = Admission(caller.functions)
    async with scene.worker(caller.url, tool_sandbox="none"):
        await values(caller, await caller.submit(call(scene, "alone")))  # its card is known
        first, second = await caller.submit(*[call(scene, "alone", seconds=1.0) for _ in range(2)])

        async def waits() -> Shortage | None:
            found = await admission.barrier("tool", second)
            return found if isinstance(found, Shortage) and await held() else None

        async def held() -> bool:
            rows = await admission.resources("tool")
            return [(row.resource, row.limit, row.holders) for row in rows] == [
                (Resource.tool("me/alone"), 1, (first,))
            ]

        shortage = await wait_until_async(waits)
        assert shortage is not None
        assert (shortage.resource, shortage.limit) == (Resource.tool("me/alone"), 1)
        job = await caller.control.job(second)
        assert job is not None
        around = await surroundings(caller.functions, Keys(), job, None)
        told = explain(job, around)
        assert told.rule == "resource"
        assert "tool 'me/alone'" in told.text
        assert first[:8] in told.text
        await values(caller, [first, second])


async def test_what_a_removed_tool_was_limited_by_goes_with_it(
    scene: ToolScene, caller: Caller
) -> None:
    cards, limits = ToolCards(caller.connection, Keys()), Keys().own("tool_limits:tool")
    async with scene.worker(caller.url, tool_sandbox="none"):
        await values(caller, await caller.submit(call(scene, "alone")))
        assert await caller.connection.execute("HGET", limits, "me/alone") == b"1 0 0"

        async def is_told() -> bool:
            return await cards.one("me/alone") is not None

        await wait_until_async(is_told)
        scene.describe(("free",))

        async def is_gone() -> bool:
            return await cards.one("me/alone") is None

        await wait_until_async(is_gone)
        assert await caller.connection.execute("HKEYS", limits) == []
    assert await Admission(caller.functions).resources("tool") == []


async def test_limits_without_a_card_go_with_the_next_look(caller: Caller) -> None:
    """A call has written them down, and its tool was removed before its card was shown."""
    cards, limits = ToolCards(caller.connection, Keys()), Keys().own("tool_limits:tool")
    await caller.connection.execute("HSET", limits, "me/removed", "1 0 0", "me/new", "2 0 0")
    await cards.show(ToolCard(name="you/other", parallel=ParallelLimits(tool=3), source="there"))

    await cards.keep("here", ("me/new",))  # which is described, and not shown yet

    assert sorted(await caller.connection.execute("HKEYS", limits)) == [b"me/new", b"you/other"]


async def test_a_changed_limit_holds_from_the_next_claim_on(
    scene: ToolScene, caller: Caller
) -> None:
    async with scene.worker(caller.url, tool_sandbox="none"):
        assert set(await values(caller, await caller.submit(call(scene, "alone")))) == {1}
        scene.module.write_text(FUNCTIONS.replace("tool=1", "tool=3"))
        cards = ToolCards(caller.connection, Keys())

        async def is_told() -> bool:
            card = await cards.one("me/alone")
            return card is not None and card.parallel == ParallelLimits(tool=3)

        await wait_until_async(is_told)
        bodies = [call(scene, "alone", seconds=0.4) for _ in range(6)]
        seen = await values(caller, await caller.submit(*bodies))
        assert 1 < max(int(str(each)) for each in seen) <= 3


async def test_a_worker_that_was_killed_inside_a_call_has_no_place_for_long(
    scene: ToolScene, caller: Caller, redis_url: str
) -> None:
    settings: dict[str, object] = {
        "aios_tools": scene.file,
        "aios_state_dir": scene.folder / "state",
        "aios_tool_sandbox": "none",
    }
    admission, marks = Admission(caller.functions), scene.folder / "marks"
    clock = asyncio.get_running_loop().time

    async def is_free() -> bool:
        return [row.free for row in await admission.resources("tool")] == [1]

    async with scheduler(redis_url):
        with WorkerProcess(redis_url, "tool", **settings) as killed:
            await caller.submit(call(scene, "alone", seconds=60.0))
            await wait_until_async(lambda: any(marks.iterdir()))
            assert not await is_free()
            killed.send(signal.SIGKILL)
            begun = clock()
            await wait_until_async(is_free)
            took_s = clock() - begun
        for mark in marks.iterdir():
            mark.unlink()
        async with scene.worker(redis_url, tool_sandbox="none"):
            assert await values(caller, await caller.submit(call(scene, "alone"))) == [1]
    assert took_s < FREE_WITHIN_S


def test_a_lock_that_names_no_parameter_is_refused() -> None:
    parameters = {"properties": {"path": {"default": "."}}}
    check_locks(("gpu0", "file:{path}"), parameters)
    with pytest.raises(InvalidConfig, match="'name'"):
        check_locks(("file:{name}",), parameters)
    with pytest.raises(InvalidConfig, match="without a partner"):
        check_locks(("file:{path",), parameters)
    card = ToolCard(name="me/file", parameters=parameters, locks=("file:{path}", "gpu0"))
    assert list(map(str, needs_of(card, {}))) == ["tool:me/file", "lock:file:.", "lock:gpu0"]
    long = [needs_of(card, {"path": each * 200})[1].name for each in ("a", "b")]
    assert len({*long}) == 2
    assert needs_of(card, {"path": "a b"})[1].name.startswith("file:a-b@")
    assert needs_of(card, {"path": "a b"}) != needs_of(card, {"path": "a-b"})
