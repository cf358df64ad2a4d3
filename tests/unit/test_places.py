"""Places go to tenants in turns, and to the agents of one tenant: a flood waits for itself."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.places import Holder, Places, Shares

ONE = Shares(1, 1, 1)
MAL, VIC = Holder("mallory", "flood"), Holder("victor", "one")
HOLDERS = st.builds(Holder, st.sampled_from("AB"), st.sampled_from("xy"))


class Crowd:
    """Callers that hold their places until they are told to leave."""

    def __init__(self, shares: Shares) -> None:
        self.places = Places(shares)
        self.inside: list[tuple[Holder, asyncio.Event]] = []
        self.entered: list[Holder] = []
        self.waiting: dict[asyncio.Task[None], Holder] = {}

    async def come(self, holder: Holder) -> asyncio.Task[None]:
        task = asyncio.create_task(self._be(holder))
        self.waiting[task] = holder
        await asyncio.sleep(0)
        return task

    async def _be(self, holder: Holder) -> None:
        leave = asyncio.Event()
        async with self.places.one(holder):
            del self.waiting[asyncio.current_task()]  # type: ignore[arg-type]
            self.entered.append(holder)
            self.inside.append((holder, leave))
            try:
                await leave.wait()
            finally:
                self.inside.remove((holder, leave))

    async def leave(self, number: int = 0) -> None:
        self.inside[number % len(self.inside)][1].set()
        await settled()

    async def empty(self) -> None:
        while self.inside:
            await self.leave()

    def check(self) -> None:
        shares = self.places.shares
        tenants = Counter(holder.tenant for holder, _ in self.inside)
        agents = Counter(holder for holder, _ in self.inside)
        assert self.places.held == len(self.inside) <= shares.places
        assert max(tenants.values(), default=0) <= shares.of_tenant
        assert max(agents.values(), default=0) <= shares.of_agent
        if len(self.inside) < shares.places:  # nobody waits for a place that is free for it
            for holder in self.waiting.values():
                full = tenants[holder.tenant] == shares.of_tenant
                assert full or agents[holder] == shares.of_agent


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_tenant_waits_for_one_turn_of_another_however_many_wait_before() -> None:
    crowd = Crowd(ONE)
    for _ in range(50):
        await crowd.come(MAL)
    await crowd.come(VIC)
    await crowd.leave()
    await crowd.leave()
    assert crowd.entered == [MAL, MAL, VIC]
    await crowd.empty()
    assert Counter(crowd.entered) == {MAL: 50, VIC: 1}


async def test_agents_of_a_tenant_take_turns_and_are_one_tenant_to_others() -> None:
    crowd = Crowd(ONE)
    flood = [Holder("mallory", f"m{number}") for number in range(3)]
    await crowd.come(flood[0])
    for holder in flood * 2:
        await crowd.come(holder)
    for _ in range(3):
        await crowd.come(VIC)
    await crowd.empty()
    order = [holder.agent for holder in crowd.entered]
    assert order[:7] == ["m0", "m0", "one", "m1", "one", "m2", "one"]


async def test_a_tenant_alone_leaves_places_for_who_comes_next() -> None:
    crowd = Crowd(Shares(places=4, of_tenant=3, of_agent=2))
    for agent in ("m0", "m1"):
        for _ in range(9):
            await crowd.come(Holder("mallory", agent))
    assert Counter(holder.agent for holder in crowd.entered) == {"m0": 2, "m1": 1}
    await crowd.come(VIC)
    assert crowd.entered[-1] == VIC
    await crowd.empty()


async def test_who_leaves_the_line_or_is_cancelled_with_the_place_in_hand_keeps_none() -> None:
    crowd = Crowd(ONE)
    await crowd.come(MAL)
    gone, late = await crowd.come(VIC), await crowd.come(VIC)
    gone.cancel()
    await settled()
    assert crowd.places.waiting == 1
    crowd.inside[0][1].set()
    await asyncio.sleep(0)
    assert crowd.places.waiting == 0  # `late` has been given the place, and does not know it yet
    late.cancel()
    await asyncio.gather(gone, late, return_exceptions=True)
    assert crowd.places.held == 0
    await crowd.come(MAL)
    assert crowd.places.held == 1
    await crowd.empty()


@pytest.mark.parametrize("shares", [(0, 0, 0), (2, 3, 1), (2, 1, 2), (1, 1, 0)])
def test_shares_with_which_somebody_would_have_nothing_are_refused(
    shares: tuple[int, int, int],
) -> None:
    with pytest.raises(ValueError, match="no shares"):
        Shares(*shares)


COMES = HOLDERS.map(lambda holder: ("comes", holder))
ENDS = st.tuples(st.sampled_from(["leaves", "cancelled"]), st.integers(0, 20))


@given(
    st.lists(COMES | ENDS, max_size=60),
    st.sampled_from([Shares(1, 1, 1), Shares(2, 1, 1), Shares(3, 2, 1), Shares(4, 4, 4)]),
)
def test_whatever_comes_and_goes_shares_are_kept_and_no_free_place_is_waited_for(
    moves: list[tuple[str, object]], shares: Shares
) -> None:
    async def play() -> None:
        crowd = Crowd(shares)
        tasks: list[asyncio.Task[None]] = []
        for move, what in moves:
            if move == "comes":
                assert isinstance(what, Holder)
                tasks.append(await crowd.come(what))
            elif move == "leaves" and crowd.inside:
                assert isinstance(what, int)
                await crowd.leave(what)
            elif move == "cancelled" and tasks:
                assert isinstance(what, int)
                task = tasks[what % len(tasks)]
                crowd.waiting.pop(task, None)
                task.cancel()
            await settled()
            crowd.check()
        await crowd.empty()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (crowd.places.held, crowd.places.waiting) == (0, 0)

    asyncio.run(play())


@given(st.lists(HOLDERS, min_size=4, max_size=40))
def test_between_two_turns_of_a_tenant_each_other_that_waits_has_one(line: list[Holder]) -> None:
    async def play() -> list[Holder]:
        crowd = Crowd(ONE)
        for holder in (Holder("first", "one"), *line):
            await crowd.come(holder)
        await crowd.empty()
        return crowd.entered[1:]

    left = Counter(holder.tenant for holder in line)
    entered = asyncio.run(play())
    assert Counter(entered) == Counter(line)
    for holder, following in itertools.pairwise(entered):
        left[holder.tenant] -= 1
        others = [tenant for tenant in left if tenant != holder.tenant and left[tenant]]
        assert following.tenant != holder.tenant or not others
