"""Where a syscall goes on when its core has failed: on another core of its chain.

Before the first token of an answer any core of the chain does; after it only one of the same model.
The chain is that of the core, then what is left of those that gave the syscall away before. Nobody
gets it twice, so it ends.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import CoreError
from aios_broker.queues.control import Control
from aios_broker.retry import patiently
from aios_workers.llm.core import CoreInfo
from aios_workers.runtime.executor import Suspended
from aios_workers.runtime.kernel import Kernel
from aios_workers.runtime.runs import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a syscall had come when its core failed."""

    begun: bool = False  # something of its answer is there, of this run or of earlier ones
    streamed: bool = False  # its caller has read some of that
    snapshot: bytes | None = None  # from which it goes on, where snapshots of its core are read


def next_core(
    core: CoreInfo, tried: Sequence[str], living: Mapping[str, CoreCard], progress: Progress
) -> str | None:
    """Return the core that a syscall is given to; None: there is none."""
    known = [living[name] for name in (core.name, *reversed(tried)) if name in living]
    for name in chain.from_iterable(card.fallback for card in known):
        is_new = name in living and name not in (core.name, *tried)
        if is_new and _goes_on(core, living[name], progress):
            return name
    return None


def _goes_on(core: CoreInfo, card: CoreCard, progress: Progress) -> bool:
    if not progress.begun:
        return True
    if card.model != core.model:
        return False
    # What its caller has read must stay true; what nobody has read may be made anew.
    reads = progress.snapshot is not None and card.snapshot_model == core.snapshot_model
    return reads or not progress.streamed


class Fallback:
    """Gives what fails on one core to the next one."""

    def __init__(self, core: CoreInfo, kernel: Kernel) -> None:
        self._core = core
        self._queue = kernel.queue
        self._may_leave = kernel.may_leave

    async def take(self, run: Run, error: CoreError, progress: Progress) -> Suspended:
        """Return how the syscall leaves this core; raise the error where nobody can go on."""
        if not self._may_leave:
            raise error
        views = await patiently(Control(self._queue.functions, self._queue.keys).cores)
        # The failed one is known by its chain, alive or not; others have to live.
        living = {
            view.card.name: view.card
            for view in views
            if view.slots is not None or view.card.name in (self._core.name, *run.lease.tried)
        }
        name = next_core(self._core, run.lease.tried, living, progress)
        if name is None:
            raise error
        logger.warning("syscall %s goes on on core %s: %s", run.lease.job_id, name, error)
        return Suspended(progress.snapshot, "suspend", name)
