"""Time slices of what runs on one core: what it makes is counted, and at each end it is asked."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric

from aios_broker.queues.records import SliceTerms
from aios_workers.llm.core import Core
from aios_workers.llm.slicing_rule import (
    ContextTokens,
    ResumeCost,
    contexts_that_fit,
    slice_terms,
)
from aios_workers.runtime.executor import BackgroundTasks, Run, SuspendReason
from aios_workers.runtime.kernel import Kernel


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
