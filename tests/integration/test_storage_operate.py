"""File operations in plain words: a plan that is shown, approved whole, and run whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aios_broker.access.requests import Decision
from aios_broker.contract.errors import InvalidSyscall, NotFound
from aios_broker.contract.storage import (
    Plan,
    StorageList,
    StorageOperate,
    StorageRead,
    StorageWrite,
)
from aios_workers.approvals.service import NeedsApproval
from tests.state_scene import StateScene, state_scene


@pytest.fixture
async def scene(redis_url: str, database_url: str) -> AsyncIterator[StateScene]:
    async with state_scene(redis_url, database_url) as opened:
        await opened.ask("ann", StorageWrite("a.txt", "one"))
        yield opened


def plan(*steps: dict[str, Any]) -> dict[str, str]:
    return {"plan": json.dumps({"steps": steps})}


async def paths(scene: StateScene) -> list[str]:
    listed = await scene.ask("ann", StorageList(recursive=True))
    return [entry.path for entry in listed.entries if entry.kind == "file"]


async def test_a_harmless_plan_runs_and_a_dry_run_does_not(scene: StateScene) -> None:
    scene.answers.texts = plan(
        {"do": "create", "path": "b.txt", "content": "two"},
        {"do": "append", "path": "a.txt", "content": "!"},
    )
    shown: Plan = await scene.ask("ann", StorageOperate("make b", dry_run=True))
    assert (shown.done, [step.kind for step in shown.steps]) == (
        False,
        ["storage.create", "storage.append"],
    )
    assert await paths(scene) == ["/a.txt"]
    done: Plan = await scene.ask("ann", StorageOperate("make b"))
    assert (done.done, [step.outcome for step in done.steps]) == (True, ["done", "done"])
    assert (await scene.ask("ann", StorageRead("a.txt"))).content == "one!"
    _, chat = scene.answers.asked[-1]
    assert "/a.txt" in str(chat)  # the model was told what there is


async def test_a_plan_that_may_lose_something_waits_whole_and_runs_as_it_was_shown(
    scene: StateScene,
) -> None:
    scene.answers.texts = plan(
        {"do": "create", "path": "b.txt", "content": "two"}, {"do": "delete", "path": "a.txt"}
    )
    syscall = scene.syscall("ann", StorageOperate("replace a by b"))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    assert await paths(scene) == ["/a.txt"]
    approval = await scene.approval_of(syscall.id)
    assert "delete" in approval.diff
    assert approval.operation == "delete"
    scene.answers.texts = plan({"do": "delete", "path": "b.txt"})  # the model changes its mind
    await scene.decide(syscall.id, Decision("approved"))
    done: Plan = await scene.run(syscall)
    assert [step.kind for step in done.steps] == ["storage.create", "storage.delete"]
    assert len(scene.answers.asked) == 1  # for a plan, before it was shown
    assert await paths(scene) == ["/b.txt"]
    assert await scene.run(syscall) == done


async def test_a_plan_that_makes_and_takes_in_one_tree_is_asked_about_once(
    scene: StateScene,
) -> None:
    """What it makes has another number each time that it runs: that is no other thing to lose."""
    await scene.ask("ann", StorageWrite("d/old.txt", "old"))
    scene.answers.texts = plan(
        {"do": "create", "path": "d/new.txt", "content": "new"},
        {"do": "mkdir", "path": "d/made"},
        {"do": "move", "path": "a.txt", "to": "d/made/a.txt"},
        {"do": "delete", "path": "d", "recursive": True},
    )
    syscall = scene.syscall("ann", StorageOperate("tidy up"))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    asked = await scene.approval_of(syscall.id)
    assert asked.objects[-1].count == 2  # what was there before: the old file, and the one moved in
    assert asked.diff.endswith("/d/made/a.txt\n/d/old.txt")
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    assert (await scene.approval_of(syscall.id)).id == asked.id
    await scene.decide(syscall.id, Decision("approved"))
    assert (await scene.run(syscall)).done
    assert await paths(scene) == []


async def test_what_is_put_into_a_directory_that_the_plan_made_goes_as_it_was_seen(
    scene: StateScene,
) -> None:
    scene.answers.texts = plan(
        {"do": "mkdir", "path": "made"},
        {"do": "move", "path": "a.txt", "to": "made/a.txt"},
        {"do": "move", "path": "made", "to": "scratch/made"},
    )
    syscall = scene.syscall("ann", StorageOperate("put it away"))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    asked = await scene.approval_of(syscall.id)
    await scene.decide(syscall.id, Decision("approved"))
    await scene.approved("ann", StorageWrite("a.txt", "other"))
    with pytest.raises(NeedsApproval):  # another version than was seen
        await scene.run(syscall)
    assert (await scene.approval_of(syscall.id)).id != asked.id
    await scene.decide(syscall.id, Decision("approved"))
    await scene.run(syscall)
    assert await paths(scene) == ["/scratch/made/a.txt"]


async def test_what_a_plan_made_itself_is_taken_away_unasked(scene: StateScene) -> None:
    scene.answers.texts = plan(
        {"do": "create", "path": "made/deep/b.txt", "content": "two"},
        {"do": "copy", "path": "a.txt", "to": "made/a.txt"},
        {"do": "move", "path": "made/a.txt", "to": "a-again.txt"},
        {"do": "delete", "path": "made", "recursive": True},
    )
    assert (await scene.ask("ann", StorageOperate("try it"))).done
    assert await paths(scene) == ["/a-again.txt", "/a.txt"]


async def test_a_step_that_is_refused_undoes_the_whole_plan(scene: StateScene) -> None:
    scene.answers.texts = plan(
        {"do": "create", "path": "b.txt", "content": "two"},
        {"do": "create", "path": "a.txt", "content": "taken"},
    )
    with pytest.raises(InvalidSyscall, match="step 2 of the plan"):
        await scene.ask("ann", StorageOperate("make two files"))
    with pytest.raises(NotFound):
        await scene.ask("ann", StorageRead("b.txt"))


@pytest.mark.parametrize(
    "answer",
    [
        "no JSON",
        "{}",
        '{"steps": [{"do": "share", "path": "a.txt"}]}',
        '{"steps": [{"do": "delete"}]}',
        '{"steps": [{"do": "delete", "path": ""}]}',
        '{"steps": [{"do": "delete", "path": "a.txt", "owner": "bob", "x": 1}]}',
    ],
)
async def test_what_is_no_plan_is_refused(scene: StateScene, answer: str) -> None:
    scene.answers.texts = {"plan": answer}
    with pytest.raises(InvalidSyscall, match="no plan that can be run"):
        await scene.ask("ann", StorageOperate("do it"))
    assert await paths(scene) == ["/a.txt"]


async def test_a_plan_does_not_leave_the_namespace(scene: StateScene) -> None:
    scene.answers.texts = plan({"do": "create", "path": "../b.txt", "content": "two"})
    with pytest.raises(InvalidSyscall, match="step 1 of the plan"):
        await scene.ask("ann", StorageOperate("make a file elsewhere"))
