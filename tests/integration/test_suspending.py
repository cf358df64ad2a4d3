"""Who makes way for whom at the end of a slice, and where it waits then."""

from aios_broker.queues.module_queue import ClaimRequest
from aios_broker.queues.records import Lease, SliceUse
from tests.queue_user import LEASE_S, QueueUser


async def slice_end(user: QueueUser, *leases: Lease) -> list[str]:
    uses = [SliceUse(lease, 0.1, 1, None) for lease in leases]
    verdicts = await user.queue.slice_end("worker", uses, ClaimRequest(0, LEASE_S))
    return list(verdicts)


async def test_one_that_is_suspended_waits_behind_all_others(user: QueueUser) -> None:
    first, second, third = await user.submit(0, 0, 0)
    [lease] = await user.claim()
    assert await slice_end(user, lease) == ["suspend"]
    await user.suspend(lease)
    assert await user.waiting() == [second, third, first]


async def test_one_makes_way_for_one_that_waits(user: QueueUser) -> None:
    await user.submit(0, 0, 0, 0)
    leases = await user.claim(3)
    assert await slice_end(user, *leases) == ["suspend", "go", "go"]
    assert await slice_end(user, *leases) == ["suspend", "go", "go"]  # told again, until it has


async def test_two_make_way_for_two_and_nobody_for_none(user: QueueUser) -> None:
    await user.submit(0, 0, 0)
    leases = await user.claim(3)
    assert await slice_end(user, *leases) == ["go", "go", "go"]
    await user.submit(0, 0)
    assert sorted(await slice_end(user, *leases)) == ["go", "suspend", "suspend"]
