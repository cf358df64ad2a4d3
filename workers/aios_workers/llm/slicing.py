"""Time slices of what runs on one core: what it makes is counted, and at each end it is asked.

How long a slice is says the policy in force, which is kept at hand here; and when cutting pays is
said by what resuming a generation costs, and by how many contexts fit the memory. A slice ends only
where it has lasted ten times what its generation costs to resume. Where the contexts that are begun
do not fit the core's memory, each cut throws out what has to be read again: there a slice lasts
twenty times the reading of its whole context. No slice is kept from being cut for more than a
minute: nobody waits without end. docs/decisions/0025 has the figures.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

import hiredis
import msgspec
from prometheus_client.core import GaugeMetricFamily, Metric

from aios_broker.contract.errors import KernelError
from aios_broker.contract.names import Module
from aios_broker.queues.control import Control
from aios_broker.queues.records import PolicyRow, SliceTerms
from aios_workers.llm.core import ContextMemory, Core
from aios_workers.runtime.executor import BackgroundTasks
from aios_workers.runtime.kernel import Kernel
from aios_workers.runtime.runs import Run, SuspendReason

logger = logging.getLogger(__name__)

FRESH_S = 1.0  # how long a policy holds unread
PAYS = 10.0  # a slice is at least so many times the resuming of its generation
CROWDED_PAYS = 20.0  # and where contexts do not fit, so many times the reading of its context
MOST_MS = 60_000.0  # a slice that has lasted so long may be cut, whatever it costs
SAMPLES = 8  # the latest times whose median counts: a machine that was busy once is forgiven
FEW_TOKENS = 16  # that had to be read: such a first token tells nothing of the speed of reading
NEWEST_WEIGHT = 0.25  # of the latest resumption in the share that is not found in memory
UNNOTICED_MS = 2.0  # what claiming and suspending take anyway: such a cost is none
# Each slice that is too short to be cut lets the estimate fall by so much: where nothing is cut
# nothing is measured, and a core that was slow for a while is tried again.
FORGOTTEN_SHARE = 0.02


def _samples() -> deque[float]:
    return deque(maxlen=SAMPLES)


@dataclass(slots=True)
class ResumeCost:
    """What resuming has cost on one core, by the first tokens of its generations."""

    missed_share: float = 0.0  # of a resumed context, that had to be read again
    _cached_ms: deque[float] = field(default_factory=_samples)
    _read_ms_per_token: deque[float] = field(default_factory=_samples)
    _step_ms: deque[float] = field(default_factory=_samples)
    _trust: float = 1.0

    @property
    def cached_ms(self) -> float:
        """What a context costs of which all is in memory."""
        return median(self._cached_ms) if self._cached_ms else 0.0

    @property
    def read_ms_per_token(self) -> float:
        """What a token costs that is not."""
        return median(self._read_ms_per_token) if self._read_ms_per_token else 0.0

    def stepped(self, took_ms: float) -> None:
        """Note how long a token took that is no first one: a first one takes as much beside."""
        self._step_ms.append(took_ms)

    def began(self, tokens: int, cached_tokens: int, took_ms: float, *, resumed: bool) -> None:
        """Note a first token: after how long, of how many tokens, and how many were in memory."""
        known = max(1, tokens - 1)  # the last one is computed in any case
        missed = max(0, known - cached_tokens)
        step_ms = median(self._step_ms) if self._step_ms else 0.0
        beside_ms = max(0.0, took_ms - step_ms)
        if missed < FEW_TOKENS:
            self._cached_ms.append(beside_ms)
        else:
            self._read_ms_per_token.append(max(0.0, beside_ms - self.cached_ms) / missed)
        if resumed:
            self.missed_share += NEWEST_WEIGHT * (missed / known - self.missed_share)
            self._trust = 1.0

    def resume_ms(self, tokens: int) -> float:
        """Return what resuming a context of so many tokens is going to cost."""
        read_ms = self.missed_share * tokens * self.read_ms_per_token
        return self._trust * (self.cached_ms + read_ms)

    def read_ms(self, tokens: int) -> float:
        """Return what it costs where nothing of it is left."""
        return self.cached_ms + tokens * self.read_ms_per_token

    def uncut(self) -> None:
        """Note a slice that was too short to be cut."""
        self._trust *= 1.0 - FORGOTTEN_SHARE


@dataclass(slots=True)
class ContextTokens:
    """How large the contexts of one core become."""

    _ended_tokens: deque[float] = field(default_factory=_samples)

    def ended(self, tokens: int) -> None:
        """Note the size of one whose answer is complete."""
        self._ended_tokens.append(tokens)

    def expected(self, running: Sequence[tuple[int, int]]) -> list[int]:
        """Return the sizes that contexts are going to have.

        As large as the latest that ended, by their median; before one has, as large as they may.

        Args:
            running: Of each the tokens that it has, and those that it may come to.
        """
        if not self._ended_tokens:
            return [most for _, most in running]
        usual = int(median(self._ended_tokens))
        return [max(now, min(usual, most)) for now, most in running]


def contexts_that_fit(memory: ContextMemory, sizes_tokens: Sequence[int], slots: int) -> int:
    """Return how many contexts, each like those that run, the memory holds; 0: it does not say."""
    if memory.tokens is None or not sizes_tokens:
        return 0
    mean_tokens = max(1.0, sum(sizes_tokens) / len(sizes_tokens))
    fits = int(memory.tokens / mean_tokens)
    return max(1, slots + fits if memory.beside_slots else fits)


def slice_terms(
    cost: ResumeCost, tokens: int, slice_ms: float, *, fits: int, memory: str
) -> SliceTerms:
    """Return when a slice of a context may be cut."""
    resume_ms = cost.resume_ms(tokens)
    least_ms = PAYS * resume_ms if resume_ms > UNNOTICED_MS else 0.0
    return SliceTerms(
        slice_ms=slice_ms,
        resume_ms=resume_ms,
        least_ms=min(MOST_MS, least_ms),
        crowded_ms=min(MOST_MS, max(least_ms, CROWDED_PAYS * cost.read_ms(tokens))),
        fits=fits,
        memory=memory,
    )


@dataclass(frozen=True, slots=True)
class _Context:
    """One that is in the core's memory: how many tokens it has, and may come to."""

    tokens: Callable[[], int]
    most_tokens: int


class Cutting:
    """What is known of one core: what resuming costs there, and which contexts run."""

    def __init__(self, core: Core) -> None:
        self.cost = ResumeCost()
        self._core = core
        self._sizes = ContextTokens()
        self._running: dict[Run, _Context] = {}

    def begin(self, run: Run, tokens: Callable[[], int], most_tokens: int) -> None:
        """Count a run's context among those that are in the core's memory."""
        self._running[run] = _Context(tokens, most_tokens)

    def end(self, run: Run, *, complete: bool) -> None:
        """It does not run any more; `complete`: its answer is there."""
        context = self._running.pop(run)
        if complete:
            self._sizes.ended(context.tokens())

    def terms(self, run: Run, slice_ms: float) -> SliceTerms:
        """Return when the slice of a run may be cut."""
        info = self._core.info
        contexts = [(each.tokens(), each.most_tokens) for each in self._running.values()]
        fits = contexts_that_fit(info.memory, self._sizes.expected(contexts), info.slots)
        tokens = self._running[run].tokens() if run in self._running else 0
        terms = slice_terms(self.cost, tokens, slice_ms, fits=fits, memory=info.memory.name)
        if slice_ms < terms.least_ms:
            self.cost.uncut()
        return terms

    def metrics(self) -> Iterable[Metric]:
        """Yield what was measured; called from another thread."""
        yield GaugeMetricFamily(
            "aios_core_resume_cached_seconds",
            "A first token of a context that is in memory, beside a plain step.",
            value=self.cost.cached_ms / 1000,
        )
        yield GaugeMetricFamily(
            "aios_core_read_token_seconds",
            "Reading a token that is not in memory.",
            value=self.cost.read_ms_per_token / 1000,
        )
        yield GaugeMetricFamily(
            "aios_core_resume_missed_ratio",
            "Of resumed contexts, the share that had to be read again.",
            value=self.cost.missed_share,
        )


class PolicyWatch:
    """Keeps the policy of one module at hand. While it cannot be read the last one holds."""

    def __init__(self, control: Control, module: Module) -> None:
        self._control = control
        self._module: Module = module
        self._row = PolicyRow()
        self._fresh_until_s = 0.0
        self._reading: asyncio.Task[None] | None = None

    def current(self) -> PolicyRow:
        """Return the policy, at most about a second old while Redis answers. Costs nothing."""
        loop = asyncio.get_running_loop()
        stale = loop.time() >= self._fresh_until_s
        if stale and (self._reading is None or self._reading.done()):
            self._reading = loop.create_task(self._refresh())
        return self._row

    async def _refresh(self) -> None:
        self._fresh_until_s = asyncio.get_running_loop().time() + FRESH_S
        try:
            self._row = await self._control.policy(self._module)
        except (KernelError, hiredis.ReplyError, msgspec.ValidationError) as error:
            logger.warning(
                "the policy of %s cannot be read, %s goes on: %s",
                self._module,
                self._row.name,
                error,
            )


class Slicing:
    """Counts what a run makes, asks at each slice's end, and says when it is suspended."""

    def __init__(
        self,
        kernel: Kernel,
        run: Run,
        tasks: BackgroundTasks,
        checkpoint: Callable[[], bytes],
        cutting: Cutting,
        *,
        preemptible: bool,
    ) -> None:
        self.suspended: SuspendReason | None = None
        self._kernel = kernel
        self._run = run
        self._tasks = tasks
        self._checkpoint = checkpoint
        self._cutting = cutting
        self._preemptible = preemptible
        self._clock = asyncio.get_running_loop().time
        self._asked_s = self._clock()
        self._tokens = 0  # since the kernel was asked last
        self._first_token_s: float | None = None  # of this slice
        self._asking = False
        self._on_suspend: Callable[[], None] = lambda: None

    def begin(self, on_suspend: Callable[[], None] = lambda: None) -> None:
        """Listen to the kernel; `on_suspend` is called once, at once if it should be suspended."""
        self._on_suspend = on_suspend
        self._run.on_suspend(self._suspend)

    def count(self, tokens: int) -> None:
        """Note tokens that the core has made."""
        if self._first_token_s is None:
            self._first_token_s = self._clock()
        self._run.count_tokens(tokens)
        self._tokens += tokens

    def check(self) -> None:
        """Ask, each quantum, whether to go on. The generation does not wait for the answer."""
        if self._asking or self.suspended is not None:
            return
        policy = self._kernel.policy()
        since_s = self._clock() - self._asked_s
        if self._tokens >= policy.quantum_tokens or since_s >= policy.quantum_s:
            self._asking = True
            self._tasks.start(self._ask())

    async def _ask(self) -> None:
        checkpoint = self._checkpoint() if self._preemptible else None
        first_s = self._asked_s if self._first_token_s is None else self._first_token_s
        terms = self._cutting.terms(self._run, 1000 * (self._clock() - first_s))
        verdict = await self._kernel.slices.end(self._run, checkpoint, terms)
        self._asked_s, self._tokens = self._clock(), 0
        self._asking = False
        if verdict == "lost":
            self._run.stop("lost")
        elif verdict != "go":
            self._suspend(verdict)

    def _suspend(self, reason: SuspendReason) -> None:
        """Stop at the next token; one that has found its end meanwhile is finished instead."""
        if self.suspended is None and self._preemptible:
            self.suspended = reason
            self._on_suspend()
