"""Storage is what a plain model of it is, also when Postgres is restarted in the middle."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine

import pytest

from aios_broker.contract.errors import KernelError
from aios_broker.contract.storage import (
    StorageAppend,
    StorageBody,
    StorageCopy,
    StorageCreate,
    StorageDelete,
    StorageList,
    StorageMkdir,
    StorageMove,
    StorageRead,
    StorageRollback,
    StorageShare,
    StorageUnshare,
    StorageWrite,
)
from tests.conftest import RunningPostgres
from tests.storage_model import Model
from tests.storage_scene import Scene, storage_scene

FEW, MANY = 1_500, 100_000  # operations
KEEP = 4
COMPARED_EVERY = 100
NAMES = ("a", "b", "c")
VERBS: tuple[tuple[str, ...], ...] = (("read",), ("read", "write"), ("search",), ("administer",))


class Pair:
    """The module and the model, told the same."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.dice = random.Random(seed)
        self.scene = scene
        self.model = Model(KEEP)
        self.count = 0

    def path(self) -> str:
        return "/" + "/".join(
            self.dice.choice(NAMES) for _ in range(self.dice.choice((1, 2, 2, 3)))
        )

    async def step(self) -> None:
        self.count += 1
        acts = (
            self.create,
            self.write,
            self.append,
            self.read,
            self.move,
            self.copy,
            self.delete,
            self.mkdir,
            self.rollback,
            self.share,
        )
        act = self.dice.choices(acts, (12, 22, 8, 18, 9, 6, 8, 5, 9, 5))[0]
        await act()
        if self.count % COMPARED_EVERY == 0:
            await self.compare()

    async def both(
        self, body: StorageBody, expected: Callable[[], object], agent: str = "ann"
    ) -> None:
        """Run one syscall; the module must do or refuse what the model does or refuses."""
        try:
            answer = expected()
        except KernelError as error:
            with pytest.raises(type(error)):
                await self.scene.ask(body, agent)
            return
        result = await self.scene.ask(body, agent)
        if isinstance(body, StorageRead):
            assert result.content == answer

    def asker(self) -> tuple[str, str | None, bool]:
        if self.dice.random() < 0.7:
            return "ann", None, True
        return "bob", "ann", False

    async def create(self) -> None:
        (agent, owner, own), path, text = self.asker(), self.path(), str(self.count)
        await self.both(
            StorageCreate(path, text, owner=owner),
            lambda: self.model.create(path, text, own=own),
            agent,
        )

    async def write(self) -> None:
        (agent, owner, own), path = self.asker(), self.path()
        text = str(self.dice.choice((self.count, self.dice.randrange(5))))  # some are the same
        await self.both(
            StorageWrite(path, text, owner=owner),
            lambda: self.model.write(path, text, own=own),
            agent,
        )

    async def append(self) -> None:
        (agent, owner, own), path = self.asker(), self.path()
        await self.both(
            StorageAppend(path, "+", owner=owner),
            lambda: self.model.append(path, "+", own=own),
            agent,
        )

    async def read(self) -> None:
        (agent, owner, own), path = self.asker(), self.path()
        version = self.dice.choice((None, None, self.dice.randrange(1, 8)))
        await self.both(
            StorageRead(path, version, owner=owner),
            lambda: self.model.read(path, version, own=own),
            agent,
        )

    async def move(self) -> None:
        path, to, overwrite = self.path(), self.path(), self.dice.random() < 0.5
        await self.both(
            StorageMove(path, to, overwrite), lambda: self.model.move(path, to, overwrite=overwrite)
        )

    async def copy(self) -> None:
        path, to, overwrite = self.path(), self.path(), self.dice.random() < 0.5
        await self.both(
            StorageCopy(path, to, overwrite), lambda: self.model.copy(path, to, overwrite=overwrite)
        )

    async def delete(self) -> None:
        path, recursive = self.path(), self.dice.random() < 0.4
        await self.both(
            StorageDelete(path, recursive), lambda: self.model.delete(path, recursive=recursive)
        )

    async def mkdir(self) -> None:
        path = self.path()
        await self.both(StorageMkdir(path), lambda: self.model.mkdir(path))

    async def rollback(self) -> None:
        path, version = self.path(), self.dice.randrange(1, 8)
        await self.both(StorageRollback(path, version), lambda: self.model.rollback(path, version))

    async def share(self) -> None:
        path = self.path()
        if self.dice.random() < 0.5:
            await self.both(StorageUnshare(path), lambda: self.model.share(path, frozenset()))
            return
        verbs = self.dice.choice(VERBS)
        meant = frozenset(("read", "write", "administer")) if "administer" in verbs else verbs
        await self.both(
            StorageShare(path, agent="bob", verbs=verbs),  # type: ignore[arg-type]
            lambda: self.model.share(path, frozenset(meant)),
        )

    async def compare(self) -> None:
        listed = await self.scene.ask(StorageList(recursive=True, limit=10_000))
        model = self.model
        assert {entry.path: entry.version for entry in listed.entries if entry.kind == "file"} == {
            path: file.newest for path, file in model.files.items()
        }
        assert {entry.path for entry in listed.entries if entry.kind == "directory"} == set(
            model.directories
        ) - {"/"}
        [account] = await self.scene.rows(
            "SELECT storage_used_bytes AS used FROM agent WHERE name = %s", "ann"
        )
        assert account.used == model.kept_bytes()


async def run(
    scene: Scene, steps: int, seed: int, beside: Coroutine[None, None, None] | None = None
) -> None:
    pair = Pair(scene, seed)
    other: asyncio.Task[None] | None = None
    for number in range(steps):
        if beside is not None and number == steps // 2:
            other = asyncio.create_task(beside)
        await pair.step()
    if other is not None:
        await other
    for path, file in pair.model.files.items():
        assert (await scene.ask(StorageRead(path))).content == file.content
    await pair.compare()


@pytest.mark.parametrize(
    "steps",
    [
        FEW,
        pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(2_400)]),
    ],
)
async def test_it_is_what_the_model_is(database_url: str, steps: int) -> None:
    async with storage_scene(database_url, storage_keep_versions=KEEP) as scene:
        for agent in ("ann", "bob"):
            await scene.store.vouched(agent, "default")
        await run(scene, steps, seed=steps)


@pytest.mark.parametrize(
    "steps",
    [
        FEW // 5,
        pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(2_400)]),
    ],
)
async def test_a_restart_of_postgres_loses_nothing_acknowledged(
    database_url: str, postgres_server: RunningPostgres, steps: int
) -> None:
    async def restart() -> None:
        await asyncio.to_thread(postgres_server.process.stop)
        postgres_server.process.start()  # it dies with the thread that starts it

    async with storage_scene(database_url, storage_keep_versions=KEEP) as scene:
        for agent in ("ann", "bob"):
            await scene.store.vouched(agent, "default")
        await run(scene, steps, seed=7, beside=restart())
