"""The time slices of one run: when one ends the kernel is asked, and the generation goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aios_workers.runtime.executor import BackgroundTasks, Run, SuspendReason
from aios_workers.runtime.slices import Kernel


class Slicing:
    """Counts what a run makes, asks at each slice's end, and says when it is suspended."""

    def __init__(
        self,
        kernel: Kernel,
        run: Run,
        tasks: BackgroundTasks,
        checkpoint: Callable[[], bytes],
        *,
        preemptible: bool,
    ) -> None:
        self.suspended: SuspendReason | None = None
        self._kernel = kernel
        self._run = run
        self._tasks = tasks
        self._checkpoint = checkpoint
        self._preemptible = preemptible
        self._clock = asyncio.get_running_loop().time
        self._began_s = self._clock()
        self._tokens = 0  # of this slice
        self._asking = False
        self._on_suspend: Callable[[], None] = lambda: None

    def begin(self, on_suspend: Callable[[], None] = lambda: None) -> None:
        """Listen to the kernel; `on_suspend` is called once, at once if it should be suspended."""
        self._on_suspend = on_suspend
        self._run.on_suspend(self._suspend)

    def count(self, tokens: int) -> None:
        """Note tokens that the core has made."""
        self._run.count_tokens(tokens)
        self._tokens += tokens

    def check(self) -> None:
        """Ask, at the end of a slice, whether to go on. The generation does not wait for it."""
        if self._asking or self.suspended is not None:
            return
        policy = self._kernel.policy()
        slice_s = self._clock() - self._began_s
        if self._tokens >= policy.quantum_tokens or slice_s >= policy.quantum_s:
            self._asking = True
            self._tasks.start(self._ask())

    async def _ask(self) -> None:
        checkpoint = self._checkpoint() if self._preemptible else None
        verdict = await self._kernel.slices.end(self._run, checkpoint)
        self._began_s, self._tokens = self._clock(), 0
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
