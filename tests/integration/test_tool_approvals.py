"""Destructive tools wait for a person, who allows one run of one version with these arguments."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from aios_broker.access.deciders import Decider
from aios_broker.access.requests import Decision, decide, list_approvals
from aios_broker.contract.access import Approval
from aios_broker.contract.errors import ApprovalDenied
from aios_broker.contract.tools import ToolRun
from aios_broker.retry import periodic_task
from aios_workers.approvals.service import ApprovalSweep
from tests.caller import Caller
from tests.scheduler_scene import scheduler
from tests.state_scene import AUDIT_KEY, StateScene, state_scene
from tests.tool_scene import ToolScene
from tests.waiting import wait_until_async

pytestmark = pytest.mark.timeout(120)


@asynccontextmanager
async def kernel(
    redis_url: str, database_url: str, tools: ToolScene
) -> AsyncIterator[tuple[StateScene, Caller]]:
    """Yield a tool worker with a database to ask by, the sweep, and a caller."""
    audit = tools.folder / "audit"
    audit.mkdir()
    (audit / "key").write_text(AUDIT_KEY.hex())
    async with AsyncExitStack() as stack:
        scene = await stack.enter_async_context(state_scene(redis_url, database_url))
        await stack.enter_async_context(scheduler(redis_url))
        worker = tools.worker(
            redis_url, database_url=database_url, audit_dir=audit, tool_sandbox="none"
        )
        await stack.enter_async_context(worker)
        services = scene.services
        sweep = ApprovalSweep(services.store, services.functions, services.keys)

        async def often() -> float:
            await sweep.sweep()
            return 0.05

        await stack.enter_async_context(periodic_task("approvals", often, "approvals wait"))
        caller = Caller(redis_url)
        stack.push_async_callback(caller.aclose)
        yield scene, caller


async def parked(caller: Caller, tools: ToolScene) -> str:
    """Call the destructive tool; return its id when it is parked."""
    [job] = await caller.submit(ToolRun("me/wipe", {"path": str(tools.told)}))

    async def is_parked() -> bool:
        return await caller.state(job) == "parked"

    await wait_until_async(is_parked, 60)
    return job


async def asked_for(scene: StateScene, job: str) -> Approval:
    async with scene.store.as_steward() as cursor:
        listed = await list_approvals(cursor, None, 1_000)
    [approval] = [one for one in listed.approvals if one.syscall_id == job]
    return approval


async def decided(scene: StateScene, approval: Approval, decision: Decision) -> None:
    async with scene.store.as_steward() as cursor:
        await decide(cursor, approval.id, Decider("operator:test"), decision)


async def test_it_runs_once_when_a_person_has_allowed_it(
    redis_url: str, database_url: str, tmp_path: Path
) -> None:
    tools = ToolScene(tmp_path, "wipe")
    async with kernel(redis_url, database_url, tools) as (scene, caller):
        job = await parked(caller, tools)
        assert tools.lines() == []
        approval = await asked_for(scene, job)
        assert (approval.operation, approval.kind) == ("tool", "tool.call")
        assert approval.what.startswith("run me/wipe with")
        [seen] = approval.objects
        assert (seen.kind, seen.id) == ("tool", "me/wipe")

        await decided(scene, approval, Decision("approved"))

        assert (await caller.hear(job)).unwrap().value == "wiped"  # type: ignore[union-attr]
        assert tools.lines() == ["wiped"]


async def test_it_does_not_run_when_a_person_refuses_it(
    redis_url: str, database_url: str, tmp_path: Path
) -> None:
    tools = ToolScene(tmp_path, "wipe")
    async with kernel(redis_url, database_url, tools) as (scene, caller):
        job = await parked(caller, tools)
        approval = await asked_for(scene, job)
        await decided(scene, approval, Decision("denied", "not today"))

        with pytest.raises(ApprovalDenied, match="not today"):
            (await caller.hear(job)).unwrap()
        assert tools.lines() == []


async def test_a_tool_that_has_changed_since_is_asked_for_anew(
    redis_url: str, database_url: str, tmp_path: Path
) -> None:
    tools = ToolScene(tmp_path, "wipe")
    async with kernel(redis_url, database_url, tools) as (scene, caller):
        job = await parked(caller, tools)
        first = await asked_for(scene, job)
        tools.module.write_text(tools.module.read_text().replace('"wiped"', '"wiped all"'))

        async def is_new() -> bool:
            card = await scene.services.functions.connection.execute(
                "HGET", scene.services.keys.own("tool_cards"), "me/wipe"
            )
            return card is not None and first.objects[0].digest.encode() not in card

        await wait_until_async(is_new, 60)
        await decided(scene, first, Decision("approved"))

        async def is_asked_anew() -> bool:
            return (await asked_for(scene, job)).id != first.id

        await wait_until_async(is_asked_anew, 60)
        assert tools.lines() == []
        await decided(scene, await asked_for(scene, job), Decision("approved"))
        assert (await caller.hear(job)).unwrap().value == "wiped all"  # type: ignore[union-attr]


async def test_an_approval_is_not_used_up_while_a_lock_is_not_free(
    redis_url: str, database_url: str, tmp_path: Path
) -> None:
    tools = ToolScene(tmp_path, "wipe", "hold")
    holding = tmp_path / "holding.txt"
    async with kernel(redis_url, database_url, tools) as (scene, caller):
        job = await parked(caller, tools)
        [holder] = await caller.submit(ToolRun("me/hold", {"path": str(holding)}))
        await wait_until_async(holding.exists)
        approval = await asked_for(scene, job)
        await decided(scene, approval, Decision("approved"))

        async def waits() -> bool:
            view = await caller.control.job(job)
            return view is not None and view.state in ("queued", "suspended")

        await wait_until_async(waits)
        tools.folder.joinpath("holding.txt.free").touch()
        assert (await caller.hear(holder)).unwrap().value == "held"  # type: ignore[union-attr]

        assert (await caller.hear(job)).unwrap().value == "wiped"  # type: ignore[union-attr]
        assert (await asked_for(scene, job)).id == approval.id
