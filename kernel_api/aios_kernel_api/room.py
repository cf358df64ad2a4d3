"""Memory that requests and answers may take, all of them together and those of one tenant.

A tenant has at most as much as it leaves free: whoever comes next finds some, however much one
tenant sends, or asks for and does not read.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aios_broker.contract.errors import QueueFull

logger = logging.getLogger(__name__)


class Room:
    """Bytes that all may hold together."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.free_bytes = most_bytes
        self._by_tenant: Counter[str] = Counter()  # bytes that are held

    @property
    def taken_bytes(self) -> int:
        """How much they hold now; may be asked from another thread."""
        return self._most_bytes - self.free_bytes

    def has(self, tenant: str, size_bytes: int) -> bool:
        """Return whether a tenant may hold so much more."""
        return self._by_tenant[tenant] + size_bytes <= self.free_bytes - size_bytes

    def add(self, tenant: str, size_bytes: int) -> None:
        """Let a tenant hold more, or less."""
        self.free_bytes -= size_bytes
        self._by_tenant[tenant] += size_bytes
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]

    @contextmanager
    def take(self, tenant: str) -> Iterator["Share"]:
        """Hold what one request needs, for the length of a block."""
        share = Share(self, tenant)
        try:
            yield share
        finally:
            self.add(tenant, -share.size_bytes)


class Share:
    """What one request holds of the room."""

    def __init__(self, room: Room, tenant: str) -> None:
        self._room = room
        self._tenant = tenant
        self.size_bytes = 0

    def fits(self, size_bytes: int) -> bool:
        """Hold more, and return True; False, where there is no room."""
        if not self._room.has(self._tenant, size_bytes):
            return False
        self._room.add(self._tenant, size_bytes)
        self.size_bytes += size_bytes
        return True

    def grow(self, size_bytes: int) -> None:
        """Hold more.

        Raises:
            QueueFull: there is no room.
        """
        if not self.fits(size_bytes):
            raise QueueFull(
                "the API reads as much of this tenant as it may at the moment",
                field="body",
                remedy="send it again later, fewer or smaller ones at a time",
                retry_after_s=1.0,
            )


class OpenAnswers:
    """Answers that are being sent: where a tenant has no room for more its slowest are cut off."""

    def __init__(self, room: Room) -> None:
        self.room = room
        # By tenant, in the order in which something of them was last read.
        self._by_tenant: dict[str, dict[OpenAnswer, None]] = {}

    @contextmanager
    def one(self, tenant: str, size_bytes: int, cut: Callable[[], None]) -> Iterator["OpenAnswer"]:
        """Hold an answer for the length of a block; `cut` ends it before it was read."""
        answer = OpenAnswer(self, tenant, size_bytes, cut)
        while not self.room.has(tenant, size_bytes) and self._cut_slowest(tenant):
            pass
        self.room.add(tenant, size_bytes)
        self.to_the_end(answer)
        try:
            yield answer
        finally:
            self._drop(answer)

    def to_the_end(self, answer: "OpenAnswer") -> None:
        """Let an answer be the one that was read last."""
        answers = self._by_tenant.setdefault(answer.tenant, {})
        answers.pop(answer, None)
        answers[answer] = None

    def _cut_slowest(self, tenant: str) -> bool:
        """End the answer that nobody has read for the longest; False: there is none."""
        answer = next(iter(self._by_tenant.get(tenant, {})), None)
        if answer is None:
            return False
        logger.warning("an answer that is not read is cut off: there is no room for the next one")
        self._drop(answer)
        answer.is_cut = True
        answer.cut()
        return True

    def _drop(self, answer: "OpenAnswer") -> None:
        if answer.is_cut:
            return
        self.room.add(answer.tenant, -answer.size_bytes)
        answers = self._by_tenant[answer.tenant]
        del answers[answer]
        if not answers:
            del self._by_tenant[answer.tenant]


class OpenAnswer:
    """One of them."""

    def __init__(
        self, answers: OpenAnswers, tenant: str, size_bytes: int, cut: Callable[[], None]
    ) -> None:
        self.tenant = tenant
        self.size_bytes = size_bytes
        self.cut = cut
        self.is_cut = False
        self._answers = answers

    def is_read(self) -> bool:
        """Say that some of it was read; return whether it goes on."""
        if not self.is_cut:
            self._answers.to_the_end(self)
        return not self.is_cut
