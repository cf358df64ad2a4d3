"""What was found out about forms, each once: a slot waits for it for a moment, and no longer.

    verdict = await verdicts.of(schema, holder, patience_s=PATIENCE_S)

To find out whether a form can be kept takes a child up to a second of a processor, and its tenant's
next form waits for that. Whoever holds a slot meanwhile keeps it from everybody: so it goes back to
the run queue (`FormPending`), where the policy says who is next, and asks again when it comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from aios_broker.places import Holder

PATIENCE_S = 0.25  # that a slot waits; most forms are known sooner
REMEMBERED = 256

K = TypeVar("K")  # hashable
# Finds out; calls the last argument when its turn has come, and the work begins.
Find = Callable[[K, Holder, Callable[[], None]], Awaitable[str]]


class FormPending(Exception):
    """It is still being found out, or waits for its tenant's turn: ask again later."""


@dataclass(slots=True)
class _Search:
    """One that is under way."""

    task: asyncio.Task[str]
    asking: int = 0
    has_begun: bool = False

    def begin(self) -> None:
        self.has_begun = True


class Verdicts(Generic[K]):
    """Verdicts by what they are about. What has begun goes on when nobody waits for it any more."""

    def __init__(self, find: Find[K]) -> None:
        self._find = find
        self._known: dict[K, str] = {}  # the longest unused first
        self._searches: dict[K, _Search] = {}

    async def of(self, subject: K, holder: Holder, patience_s: float | None) -> str:
        """Return the verdict, found out in the holder's name if need be.

        `patience_s`: how long to wait at the most; None: until it is known.

        Raises:
            FormPending: it is not known yet.
            CoreError, ModuleError: it could not be found out.
        """
        verdict = self._known.pop(subject, None)
        if verdict is None:
            verdict = await self._found(subject, holder, patience_s)
            self._known.pop(subject, None)
        self._remember(subject, verdict)
        return verdict

    def _remember(self, subject: K, verdict: str) -> None:
        self._known[subject] = verdict  # the last to be forgotten
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]

    async def _found(self, subject: K, holder: Holder, patience_s: float | None) -> str:
        search = self._searches.get(subject) or self._start(subject, holder)
        search.asking += 1
        try:
            await asyncio.wait([search.task], timeout=patience_s)
            if not search.task.done():
                raise FormPending
            return search.task.result()
        finally:
            search.asking -= 1
            if not search.asking and not search.has_begun:
                search.task.cancel()  # it only waits: whoever holds no slot holds no turn
                self._forget(subject, search)

    def _start(self, subject: K, holder: Holder) -> _Search:
        async def find() -> str:
            return await self._find(subject, holder, search.begin)

        search = _Search(asyncio.get_running_loop().create_task(find()))
        search.task.add_done_callback(lambda task: self._ended(subject, search, task))
        self._searches[subject] = search
        return search

    def _ended(self, subject: K, search: _Search, task: asyncio.Task[str]) -> None:
        self._forget(subject, search)
        if not task.cancelled() and task.exception() is None:
            self._remember(subject, task.result())

    def _forget(self, subject: K, search: _Search) -> None:
        if self._searches.get(subject) is search:
            del self._searches[subject]

    async def close(self) -> None:
        """End what is under way."""
        tasks = [search.task for search in self._searches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
