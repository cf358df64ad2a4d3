"""Nothing goes that nobody was asked about: every operation, on every kind of object.

What is gone after a call is compared with what was asked and what is in the audit log: whatever the
operation is called, and by whatever way it takes something away.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from aios_broker.access.requests import Decision
from aios_broker.contract.access import AccessGroupRemove, AccessRevokeToken, BoundObject
from aios_broker.contract.errors import KernelError
from aios_broker.contract.memory import MemoryAdd, MemoryGet, MemoryRemove, MemoryTtl
from aios_broker.contract.storage import (
    StorageDelete,
    StorageMove,
    StorageOperate,
    StorageRead,
    StorageUnshare,
    StorageWrite,
)
from aios_broker.contract.syscall import Body, Syscall
from aios_workers.approvals.service import NeedsApproval
from tests.every_body import bodies_of, every_kind, plan_texts
from tests.possessions import (
    EVOLVES,
    KEEP,
    Gone,
    Possessions,
    World,
    audited,
    gone,
    is_named,
    new_world,
    rules_for_all,
)
from tests.state_scene import StateScene, state_scene

AGENTS = ("ann", "bob", "boss")
SOME = 120  # calls under rules that ask nobody
FEW, MANY = 250, 5_000  # calls of the walk at random
APPROVED = "approved by operator:test"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    host = tmp_path.resolve() / "host"
    host.mkdir()
    return host


@pytest.fixture
async def scene(redis_url: str, database_url: str, host: Path) -> AsyncIterator[StateScene]:
    whose = ",".join(f"world-{number}/*" for number in range(1_000))
    async with state_scene(
        redis_url, database_url, storage_keep_versions=KEEP, storage_mounts=f"{host}={whose}"
    ) as opened:
        yield opened


def all_bodies(world: World, agent: str) -> list[Body]:
    return list(bodies_of(world, agent))


def prepare(scene: StateScene, body: Body) -> None:
    """Have the model answer what a body asks of it."""
    scene.answers.texts = dict(EVOLVES)
    if isinstance(body, StorageOperate):
        scene.answers.texts |= list(plan_texts())[int(body.instruction.split()[-1])]


def not_its_own(things: Iterable[Gone], agent: str, body: Body) -> set[Gone]:
    """Leave out what an agent gives up itself: its place in a group, its own tokens."""
    found = set(things)
    if isinstance(body, AccessGroupRemove | AccessRevokeToken) and body.agent == agent:
        found = {thing for thing in found if thing.kind not in ("member", "tokens")}
    return found


def unnamed(things: Iterable[Gone], objects: list[BoundObject]) -> list[Gone]:
    return [thing for thing in things if not is_named(thing, objects)]


async def unasked(
    world: World, before: Possessions, agent: str, body: Body
) -> tuple[Syscall, bool, Possessions]:
    """Run a call that nobody decides about; return it, whether it waits, and what there is now.

    What went without a question was made in scratch space, and is in the audit log.
    """
    scene = world.scene
    prepare(scene, body)
    syscall, waits = scene.syscall(agent, body), False
    try:
        await scene.run(syscall)
    except NeedsApproval:
        waits = True
    except KernelError:
        pass
    after = await world.has()
    if waits:
        assert after == before, (agent, body)
        return syscall, waits, after
    lost = not_its_own(gone(before, after), agent, body)
    lines = await audited(scene, syscall.id)
    assert "by rule" not in lines, (agent, body)
    assert [thing for thing in lost if not may_go(thing)] == [], (agent, body)
    assert unnamed(lost, lines.get("in scratch space", [])) == [], (agent, body)
    return syscall, waits, after


def may_go(thing: Gone) -> bool:
    """Whether a thing is one that its owner takes away without a person."""
    return thing.scratch or thing.kind in ("grants", "links")


def is_still(before: Possessions, now: Possessions) -> bool:
    """Whether a world is still of its kind: things came, none went, and nobody's rights changed."""
    return not gone(before, now) and (
        (before.grants, before.rights, before.links, before.host)
        == (now.grants, now.rights, now.links, now.host)
    )


async def approved(world: World, syscall: Syscall, before: Possessions) -> frozenset[str]:
    """Run a call that a person has allowed; return the kinds of what it took.

    All that went was shown to that person, and is in the audit log.
    """
    scene = world.scene
    asked = await scene.approval_of(syscall.id)
    await scene.decide(syscall.id, Decision("approved"))
    prepare(scene, syscall.body)
    await scene.run(syscall)
    lost = not_its_own(gone(before, await world.has()), syscall.agent, syscall.body)
    assert unnamed(lost, list(asked.objects)) == [], (syscall.agent, syscall.body, asked.what)
    lines = await audited(scene, syscall.id)
    assert unnamed(lost, lines.get(APPROVED, [])) == [], (syscall.agent, syscall.body)
    return frozenset(f"{one.operation} {one.kind}" for one in asked.objects)


def test_there_is_a_body_of_every_kind() -> None:
    world = World(None, Path(), dict.fromkeys(("plain", "shared", "full", "short"), "0" * 32))  # type: ignore[arg-type]
    assert {type(body) for body in all_bodies(world, "bob")} == every_kind()


async def test_no_side_door_is_open_where_a_deletion_waits(scene: StateScene) -> None:
    """An expiry in a moment, a way through scratch space: what they lead to decides, not a name."""
    note = await scene.ask("ann", MemoryAdd("the only copy of the contract"))
    await scene.ask("ann", StorageWrite("ledger/books.csv", "ten years of accounts"))
    side_doors: tuple[Body, ...] = (
        MemoryRemove(note.id),
        MemoryTtl(note.id, 0.001),
        StorageDelete("ledger/books.csv"),
        StorageMove("ledger", "scratch/x"),
        StorageMove("ledger/books.csv", "scratch/x.csv"),
    )
    for body in side_doors:
        with pytest.raises(NeedsApproval):
            await scene.ask("ann", body)
    assert (await scene.ask("ann", MemoryGet(note.id))).content == "the only copy of the contract"
    read = await scene.ask("ann", StorageRead("ledger/books.csv"))
    assert read.content == "ten years of accounts"


async def test_links_that_go_with_the_grants_are_written_down(
    scene: StateScene, host: Path
) -> None:
    await lawless_world(scene, host, 0)
    syscall = scene.syscall("ann", StorageUnshare("/linked.txt"))
    await scene.run(syscall)
    told = (await audited(scene, syscall.id))["by rule"]
    assert {each.kind for each in told} == {"grants", "links"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("agent", AGENTS)
async def test_no_call_takes_what_nobody_was_asked_about(
    scene: StateScene, host: Path, agent: str
) -> None:
    """Each call on a world of one kind; what asks is then approved, once per sort of thing."""
    worlds, taken = 0, set[tuple[type, frozenset[str]]]()
    world = await new_world(scene, host, worlds)
    start = await world.has()
    for number in range(len(all_bodies(world, agent))):
        body = all_bodies(world, agent)[number]
        syscall, waits, now = await unasked(world, start, agent, body)
        if waits:
            objects = (await scene.approval_of(syscall.id)).objects
            sort = type(body), frozenset(f"{one.operation} {one.kind}" for one in objects)
            if sort not in taken:
                taken.add(sort)
                await approved(world, syscall, now)
                now = await world.has()
        if not is_still(start, now):
            worlds += 1
            world = await new_world(scene, host, worlds)
            now = await world.has()
        start = now
    assert len(taken) > {"ann": 20, "bob": 15, "boss": 5}[agent]  # the walk comes that far


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param(SOME, marks=pytest.mark.timeout(300)),
        pytest.param(None, marks=[pytest.mark.slow, pytest.mark.timeout(1_800)], id="all"),
    ],
)
async def test_what_goes_by_a_rule_is_written_down(
    scene: StateScene, host: Path, calls: int | None
) -> None:
    """Nobody is asked: each thing that goes has its line all the same."""
    dice = random.Random(calls)
    world = await lawless_world(scene, host, 0)
    numbers = list(range(len(all_bodies(world, "ann"))))
    dice.shuffle(numbers)
    before, worlds, losses = await world.has(), 0, 0
    for number in numbers[:calls]:
        body = all_bodies(world, "ann")[number]
        prepare(scene, body)
        syscall = scene.syscall("ann", body)
        with contextlib.suppress(KernelError):
            await scene.run(syscall)
        after = await world.has()
        lost = not_its_own(gone(before, after), "ann", body)
        lines = await audited(scene, syscall.id)
        told = [*lines.get("by rule", []), *lines.get("in scratch space", [])]
        assert unnamed(lost, told) == [], body
        if lost:
            losses, worlds = losses + 1, worlds + 1
            world = await lawless_world(scene, host, worlds)
            after = await world.has()
        before = after
    assert losses > len(numbers[:calls]) / 10


async def lawless_world(scene: StateScene, host: Path, number: int) -> World:
    """Make a world in which nobody is asked."""
    world = await new_world(scene, host, number)
    await rules_for_all(scene, "never")
    return world


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param(FEW, marks=pytest.mark.timeout(300)),
        pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(1_800)]),
    ],
)
async def test_no_row_of_calls_takes_what_nobody_was_asked_about(
    scene: StateScene, host: Path, calls: int
) -> None:
    """Whatever agents do one after the other, each step takes nothing unasked."""
    dice = random.Random(calls)
    world = await new_world(scene, host, 0)
    now, waiting = await world.has(), 0
    for _ in range(calls):
        agent = dice.choice(("ann", "ann", "bob", "boss"))
        body = dice.choice(all_bodies(world, agent))
        _, waits, now = await unasked(world, now, agent, body)
        waiting += waits
    assert waiting > calls / 10
