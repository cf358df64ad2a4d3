"""Refused calls leave lines in the audit log: so many of each agent, and how many there were."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aios_broker.contract.access import AccessRevokeToken
from aios_broker.contract.errors import AccessDenied, DatabaseUnavailable
from aios_workers.modules import refusals
from aios_workers.modules.refusals import LEFT_OUT
from aios_workers.modules.state_handler import StateHandler
from tests.state_scene import StateScene, state_scene

AGENT, TENANT = 3, 5


@pytest.fixture
async def scene(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StateScene]:
    monkeypatch.setattr(refusals, "OF_AGENT", AGENT)
    monkeypatch.setattr(refusals, "OF_TENANT", TENANT)
    async with state_scene(redis_url, database_url) as scene:
        await scene.known("ann", "bob", "eve")
        yield scene


async def refuse(scene: StateScene, agent: str, times: int) -> None:
    """Let an agent ask for what is another's, as a worker runs it."""
    handler = StateHandler(scene.services, "access")
    for _ in range(times):
        syscall = scene.syscall(agent, AccessRevokeToken("bob"))
        with pytest.raises(AccessDenied):
            await handler.run(NO_RUN, syscall)


class _Lease:
    decided = False


class _Run:
    lease = _Lease()

    def step_aside(self) -> None:
        """Nobody waits for its slot here."""


NO_RUN: Any = _Run()


async def lines(scene: StateScene) -> Counter[tuple[str, str, str]]:
    rows = await scene.rows("SELECT actor, action, outcome, detail FROM audit ORDER BY seq")
    return Counter((row.actor, row.action, str(row.detail.get("lines", ""))) for row in rows)


async def test_an_agent_has_so_many_lines_and_the_log_says_how_many_it_leaves_out(
    scene: StateScene,
) -> None:
    await refuse(scene, "eve", AGENT + 4)
    assert await lines(scene) == {("eve", "access.revoke_token", ""): AGENT}
    await scene.services.refusals.step()
    told = await lines(scene)
    assert told == {("eve", "access.revoke_token", ""): AGENT, ("eve", LEFT_OUT, "4"): 1}
    await scene.services.refusals.step()  # nothing was left out since
    assert await lines(scene) == told


async def test_a_tenants_agents_have_so_many_together_and_begin_anew(scene: StateScene) -> None:
    await refuse(scene, "eve", AGENT)
    await refuse(scene, "ann", AGENT)
    assert (await lines(scene))["ann", "access.revoke_token", ""] == TENANT - AGENT
    await scene.services.refusals.step()
    await refuse(scene, "ann", 1)
    assert (await lines(scene))["ann", "access.revoke_token", ""] == TENANT - AGENT + 1


async def test_what_could_not_be_told_is_told_the_next_time(
    scene: StateScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await refuse(scene, "eve", AGENT + 2)
    log = scene.services.refusals
    with monkeypatch.context() as broken:
        broken.setattr(log, "_store", _Away())
        with pytest.raises(DatabaseUnavailable):
            await log.step()
        await log.close()  # the process ends all the same
    await log.close()
    assert (await lines(scene))["eve", LEFT_OUT, "2"] == 1


class _Away:
    """A database that does not answer."""

    def as_steward(self) -> None:
        raise DatabaseUnavailable("away")
