"""The access matrix once more, through a whole kernel: SDK, queue, worker, database.

All of its cells are tried on the modules themselves (`tests/integration/test_access_matrix.py`);
here a third of them, drawn anew for each kind of object, and all in the slow lane.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, LiteralString

import pytest

from aios_broker.access.requests import set_rule
from aios_broker.access.rights import Right, set_right
from aios_broker.config import KernelConfig
from aios_broker.contract.access import AccessWhoami, ObjectKind, OperationClass
from aios_broker.contract.names import Verb
from aios_broker.contract.syscall import Body
from aios_broker.postgres.store import Store
from aios_local.supervisor.kernel import EmbeddedKernel
from aios_sdk import AsyncAgent
from tests.integration.test_access_matrix import (
    CHANGING,
    GRANTED,
    KINDS,
    ROLES,
    VERBS,
    World,
    grant,
    is_served,
    take_back,
    world_of,
)

pytestmark = pytest.mark.timeout(300)
UNASKED: tuple[OperationClass, ...] = ("overwrite", "privilege", "unshare")


class KernelScene:
    """Agents that ask a kernel by the SDK."""

    def __init__(self, kernel: EmbeddedKernel, store: Store, stack: AsyncExitStack) -> None:
        self.tenant = "default"
        self._url = kernel.redis_url
        self._store = store
        self._stack = stack
        self._agents: dict[tuple[str, str], AsyncAgent] = {}

    async def ask(self, agent: str, body: Body) -> Any:  # noqa: ANN401  some result
        return await (await self._opened(agent)).submit(body)

    async def register(self, asker: str, agent: str) -> None:
        await (await self._opened(asker)).access.register(agent)

    async def _opened(self, agent: str) -> AsyncAgent:
        whom = (self.tenant, agent)
        if whom not in self._agents:
            opened = AsyncAgent(agent, tenant=self.tenant, url=self._url)
            self._agents[whom] = await self._stack.enter_async_context(opened)
        return self._agents[whom]

    async def known(self, *agents: str) -> None:
        for agent in agents:
            await self.ask(agent, AccessWhoami())
        async with self._store.as_steward() as cursor:
            for operation in UNASKED:  # people are not what is tested here
                await set_rule(cursor, self.tenant, None, operation, "never")

    async def allow(self, agent: str, *rights: Right) -> None:
        whose = await self._store.vouched(agent, self.tenant)
        async with self._store.as_steward() as cursor:
            for right in rights:
                await set_right(cursor, whose, right, "operator:test", given=True)

    async def rows(self, query: LiteralString) -> list[Any]:
        async with self._store.as_steward() as cursor:
            await cursor.execute(query)
            return await cursor.fetchall()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    config = KernelConfig(state_dir=tmp_path, llm_core="simulated", tool_workers=0)
    settings = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    with EmbeddedKernel(config, inherited=settings, temporary=True) as kernel:
        async with AsyncExitStack() as stack:
            store = Store(kernel.database_url, audit_key=config.audit_folder.key())
            stack.push_async_callback(store.aclose)
            yield await world_of(KernelScene(kernel, store, stack))


@pytest.mark.parametrize("share", [1 / 3, pytest.param(1, marks=pytest.mark.slow, id="all")])
async def test_the_kernel_lets_in_only_who_was_let_in(world: World, share: float) -> None:
    dice = random.Random(1)
    cells = [(role, verb) for role in ROLES for verb in VERBS]
    for kind in KINDS:
        for granted in GRANTED:
            await grant(world, kind, granted)
            for role, verb in dice.sample(cells, round(share * len(cells))):
                done = await check_cell(world, kind, granted, role, verb)
                if done and verb in CHANGING:
                    await grant(world, kind, granted)
            await take_back(world, kind)


async def check_cell(
    world: World, kind: ObjectKind, granted: tuple[Verb, ...], role: str, verb: Verb
) -> bool:
    """Check that one cell is as it should be; return whether it let the role in."""
    done = await world.succeeds(role, world.attempt(kind, verb))
    assert done == is_served(role, granted, verb), (kind, granted, role, verb)
    return done
