"""Which slices the load was run in, from the kernel's ledger: what the chart shows."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aios_broker.contract.errors import WaitTimeout
from aios_broker.ledger.journal import Transition
from aios_broker.ledger.ledger import Ledger

LEDGER_TIMEOUT_S = 20.0  # for the scheduler to drain the journal; it does so all the time
POLL_S = 0.2
_ENDINGS = frozenset({"finish", "fail", "cancel"})
_ENDS_SLICE = _ENDINGS | {"suspend", "hold", "park", "reclaim"}


@dataclass(frozen=True, slots=True)
class Slice:
    """One stretch for which a worker held a job. `lane` counts a worker's slots from 0.

    Times are seconds since 1970, by Redis' clock.
    """

    job_id: str
    worker: str
    lane: int
    start_s: float
    end_s: float
    ended_by: str


async def read_slices(ledger: Ledger, job_ids: Sequence[str]) -> list[Slice]:
    """Return the slices of syscalls that have ended, once the ledger knows of their ends.

    Raises:
        WaitTimeout: it does not within LEDGER_TIMEOUT_S.
        DatabaseUnavailable: Postgres does not answer.
    """
    missing, found = list(job_ids), []
    try:
        async with asyncio.timeout(LEDGER_TIMEOUT_S):
            while missing:
                job_id = missing[-1]
                history = await ledger.history(job_id)
                if any(transition.event in _ENDINGS for transition in history):
                    found += history
                    missing.pop()
                else:
                    await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise WaitTimeout(
            f"the ledger lacks the end of {len(missing)} syscalls after {LEDGER_TIMEOUT_S:g} s",
            remedy="see the scheduler's lines in the kernel's log",
        ) from error
    return slices_of(found)


def slices_of(transitions: Iterable[Transition]) -> list[Slice]:
    """Return the slices that the transitions make, in the order in which they ended."""
    running: dict[str, tuple[str, int, float]] = {}
    found: list[Slice] = []
    for one in sorted(transitions, key=lambda one: (one.position, one.ordinal)):
        at_s = one.position.ms / 1000
        if one.event in _ENDS_SLICE and one.job_id in running:
            worker, lane, start_s = running.pop(one.job_id)
            found.append(Slice(one.job_id, worker, lane, start_s, at_s, one.event))
        elif one.event == "claim":
            taken = {lane for worker, lane, _ in running.values() if worker == one.who}
            lane = next(lane for lane in range(len(taken) + 1) if lane not in taken)
            running[one.job_id] = (one.who, lane, at_s)
    return found
