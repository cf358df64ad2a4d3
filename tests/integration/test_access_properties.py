"""Groups and grants are what a plain model of them is, also where their map in Redis was left."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
import redis

from aios_broker.contract.access import (
    AccessCheck,
    AccessGrant,
    AccessGroupAdd,
    AccessGroupCreate,
    AccessGroupDelete,
    AccessGroupRemove,
    AccessGroups,
    AccessRevoke,
    GroupRole,
    ObjectKind,
    ObjectRef,
)
from aios_broker.contract.errors import KernelError
from aios_broker.contract.memory import MemoryAdd
from aios_broker.contract.names import Verb
from aios_broker.contract.storage import StorageWrite
from aios_broker.contract.syscall import Body
from aios_workers.modules.access import groups
from tests.access_model import AccessModel, Object
from tests.state_scene import NeverAsks, StateScene, state_scene

FEW, MANY = 400, 20_000  # operations
AGENTS = ("ann", "bob", "cid", "dan")
OWNERS = AGENTS[:2]
GROUPS = ("red", "blue")
VERBS: tuple[Verb, ...] = ("read", "write", "search", "share", "administer")
GROUPS_KEY = "rq:aios:groups"
AFTER_CRASH = 0.3  # of changes of groups


class Pair:
    """The module and the model, told the same."""

    def __init__(
        self, scene: StateScene, raw: redis.Redis, objects: list[Object], seed: int
    ) -> None:
        self.dice = random.Random(seed)
        self.scene = scene
        self.raw = raw
        self.objects = objects
        self.model = AccessModel()
        self.refused = 0

    async def step(self) -> None:
        acts = (self.group, self.member, self.grant, self.revoke)
        await self.dice.choices(acts, (10, 25, 45, 20))[0]()
        await self.compare()

    async def both(self, agent: str, body: Body, expected: Callable[[], None]) -> str | None:
        """Run one syscall; the module must do or refuse what the model does or refuses."""
        try:
            expected()
        except KernelError as error:
            with pytest.raises(type(error)):
                await self.scene.ask(agent, body)
            self.refused += 1
            return None
        syscall = self.scene.syscall(agent, body)
        await self.scene.run(syscall)
        return syscall.id

    async def changed_group(self, agent: str, body: Body, expected: Callable[[], None]) -> None:
        """Change a group; now and then the worker dies before the map is written."""
        before = self.shown()
        syscall_id = await self.both(agent, body, expected)
        if syscall_id is None or self.dice.random() >= AFTER_CRASH:
            return
        self.raw.delete(GROUPS_KEY)
        if before:
            self.raw.hset(
                GROUPS_KEY, mapping={name: json.dumps(groups) for name, groups in before.items()}
            )
        if self.dice.random() < 0.5:  # another worker runs it again
            await self.scene.ask(agent, body, id=syscall_id)
        else:  # or nobody does, and the periodic look finds it
            await groups.refresh(self.scene.services)

    def shown(self) -> dict[str, list[str]]:
        """Return the map in Redis."""
        return {
            str(agent): json.loads(groups) for agent, groups in self.raw.hgetall(GROUPS_KEY).items()
        }

    async def group(self) -> None:
        agent, group = self.dice.choice(AGENTS), self.dice.choice(GROUPS)
        if self.dice.random() < 0.7:
            await self.changed_group(
                agent, AccessGroupCreate(group), lambda: self.model.create(agent, group)
            )
        else:
            await self.changed_group(
                agent, AccessGroupDelete(group), lambda: self.model.delete(agent, group)
            )

    async def member(self) -> None:
        agent, member = self.dice.choice(AGENTS), self.dice.choice(AGENTS)
        group = self.dice.choice(GROUPS)
        if self.dice.random() < 0.7:
            role: GroupRole = self.dice.choice(("member", "admin"))
            await self.changed_group(
                agent,
                AccessGroupAdd(group, member, role),
                lambda: self.model.add(agent, group, member, role),
            )
        else:
            await self.changed_group(
                agent,
                AccessGroupRemove(group, member),
                lambda: self.model.remove(agent, group, member),
            )

    def grantee(self) -> tuple[str | None, str | None]:
        """Return an agent, or a group."""
        if self.dice.random() < 0.5:
            return None, self.dice.choice(GROUPS)
        return self.dice.choice(AGENTS), None

    def asker(self, subject: Object) -> str:
        return subject.owner if self.dice.random() < 0.6 else self.dice.choice(AGENTS)

    async def grant(self) -> None:
        subject, (whom, group) = self.dice.choice(self.objects), self.grantee()
        verbs = tuple(self.dice.sample(VERBS, self.dice.choice((1, 1, 2, 3))))
        agent = self.asker(subject)
        await self.both(
            agent,
            AccessGrant(reference(subject), verbs, whom, group),
            lambda: self.model.grant(agent, subject, label(whom, group), frozenset(verbs)),
        )

    async def revoke(self) -> None:
        subject, (whom, group) = self.dice.choice(self.objects), self.grantee()
        agent = self.asker(subject)
        if self.dice.random() < 0.3:
            whom = group = None
        to = label(whom, group) if whom or group else None
        await self.both(
            agent,
            AccessRevoke(reference(subject), whom, group),
            lambda: self.model.revoke(agent, subject, to),
        )

    async def compare(self) -> None:
        """What one may do, one time out of all; who is where, and what Redis shows of it."""
        agent, subject = self.dice.choice(AGENTS), self.dice.choice(self.objects)
        verb = self.dice.choice(VERBS)
        verdict = await self.scene.ask(agent, AccessCheck(reference(subject), verb))
        assert verdict.allowed == (verb in self.model.verbs(agent, subject)), verdict.why
        listed = await self.scene.ask(agent, AccessGroups())
        assert {group.name: group.members for group in listed.groups} == self.model.groups
        assert self.shown() == self.model.shown()

    async def compare_all(self) -> None:
        for agent in AGENTS:
            for subject in self.objects:
                for verb in VERBS:
                    verdict = await self.scene.ask(agent, AccessCheck(reference(subject), verb))
                    assert verdict.allowed == (verb in self.model.verbs(agent, subject))


def label(agent: str | None, group: str | None) -> str:
    return f"group:{group}" if agent is None else f"agent:{agent}"


def reference(subject: Object) -> ObjectRef:
    return ObjectRef(subject.kind, subject.name, subject.owner)


async def objects_of(scene: StateScene, owner: str) -> list[Object]:
    """Make what an owner has: a block and a note in it, a directory and a file in it."""
    note = await scene.ask(owner, MemoryAdd("a note"))
    await scene.ask(owner, StorageWrite("/d/a.txt", "a file"))
    block: tuple[ObjectKind, str] = ("block", "")
    directory: tuple[ObjectKind, str] = ("directory", "/d")
    return [
        Object(owner, *block),
        Object(owner, "note", note.id, (block,)),
        Object(owner, *directory),
        Object(owner, "file", "/d/a.txt", (directory,)),
    ]


@pytest.mark.parametrize(
    "steps",
    [
        FEW,
        pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(1_200)]),
    ],
)
async def test_it_is_what_the_model_is(redis_url: str, database_url: str, steps: int) -> None:
    async with state_scene(redis_url, database_url, approvals=NeverAsks) as scene:
        await scene.known(*AGENTS)
        objects = [one for owner in OWNERS for one in await objects_of(scene, owner)]
        with redis.Redis.from_url(redis_url, decode_responses=True) as raw:
            pair = Pair(scene, raw, objects, seed=steps)
            for _ in range(steps):
                await pair.step()
            await pair.compare_all()
    assert steps / 10 < pair.refused < steps * 0.9
