"""The time slices of one run: when one ends the kernel is asked, and the generation goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from aios_workers.runtime.kernel_port import KernelPort
from aios_workers.runtime.run import Run, SuspendReason


class Chores:
    """What is done beside a generation: questions to the kernel, aborts. Nothing is left behind."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, chore: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin one."""
        task = asyncio.get_running_loop().create_task(chore)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self) -> None:
        """Wait for all, those included that they start."""
        while self._tasks:
            tasks = frozenset(self._tasks)
            await asyncio.gather(*tasks)
            # By hand: from Python 3.12 on, gather over ended tasks does not let the loop run, and
            # their callbacks would never come to it.
            self._tasks -= tasks

    def drop(self) -> None:
        """Cancel all."""
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()


class Slicing:
    """Counts what a run makes, asks at each slice's end, and says when it is cut."""

    def __init__(self, port: KernelPort, run: Run, chores: Chores, *, preemptible: bool) -> None:
        self.cut: SuspendReason | None = None
        self._port = port
        self._run = run
        self._chores = chores
        self._preemptible = preemptible
        self._clock = asyncio.get_running_loop().time
        self._began_s = self._clock()
        self._tokens = 0  # of this slice
        self._asking = False
        self._checkpoint: Callable[[], bytes] | None = None
        self._on_cut: Callable[[], None] | None = None

    def begin(self, checkpoint: Callable[[], bytes], on_cut: Callable[[], None]) -> None:
        """Listen to the kernel. `on_cut` is called once, at once if it should be suspended."""
        self._checkpoint = checkpoint
        self._on_cut = on_cut
        self._run.on_suspend(self._suspend)

    def count(self, tokens: int) -> None:
        """Note tokens that the core has made."""
        self._run.count_tokens(tokens)
        self._tokens += tokens

    def look(self) -> None:
        """Ask, at the end of a slice, whether to go on. The generation does not wait for it."""
        if self._asking or self.cut is not None:
            return
        policy = self._port.policy.row
        if (
            self._tokens >= policy.quantum_tokens
            or self._clock() - self._began_s >= policy.quantum_s
        ):
            self._asking = True
            self._chores.start(self._ask())

    async def _ask(self) -> None:
        assert self._checkpoint is not None
        checkpoint = self._checkpoint() if self._preemptible else None
        verdict = await self._port.slices.end(self._run, checkpoint)
        self._began_s, self._tokens = self._clock(), 0
        self._asking = False
        if verdict == "lost":
            self._run.stop("lost")
        elif verdict != "go":
            self._suspend(verdict)

    def _suspend(self, reason: SuspendReason) -> None:
        """Stop at the next token; one that has found its end meanwhile is finished instead."""
        if self.cut is None and self._preemptible:
            self.cut = reason
            assert self._on_cut is not None
            self._on_cut()
