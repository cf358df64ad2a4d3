"""What the cores on real models share.

Their tokenizer in the worker's process, and when one that keeps failing is left alone.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from aios_broker.contract.errors import CoreError
from aios_broker.contract.llm import Message, Tool
from aios_workers.llm.core import CoreInfo
from aios_workers.llm.options import check_length, check_texts

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3  # of a process that dies, within its window; then it stays down as long


class Vocabulary(Protocol):
    """What a core needs to know of a model's tokens."""

    size: int  # ids are below it
    longest_piece_bytes: int

    def render(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[int, ...]:
        """Return the prompt ids of a conversation."""
        ...

    def decode(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of ids."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        ...


Tokens = TypeVar("Tokens", bound=Vocabulary)


class BaseCore(Generic[Tokens]):
    """The part of a `Core` that reads and writes tokens."""

    def __init__(self) -> None:
        self._info: CoreInfo | None = None
        self._vocabulary: Tokens | None = None

    @property
    def info(self) -> CoreInfo:
        """What it is; valid after `start`."""
        if self._info is None:
            raise CoreError("the core has not been started", remedy="call start() first")
        return self._info

    @property
    def vocabulary(self) -> Tokens:
        """The model's tokens; valid between `start` and `close`."""
        if self._vocabulary is None:
            raise CoreError("the core is not started", remedy="call start() first")
        return self._vocabulary

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """Return the prompt ids of a conversation, by the model's own template.

        Raises:
            ContextTooLong: It could not fit whatever its tokens are; this spares reading it.
            InvalidSyscall: The model's template refuses these messages.
        """
        byte_count = sum(len(message.content.encode("utf-8", "replace")) for message in messages)
        least_tokens = byte_count // self.vocabulary.longest_piece_bytes
        check_length(least_tokens, 0, self.info, said="at least ")
        return self.vocabulary.render(messages, tools)

    def decode(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of output ids; the end may be a cut-off UTF-8 character."""
        return self.vocabulary.decode(ids)

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return self.vocabulary.is_end(token)


async def text_ids(
    texts: Sequence[str],
    tokenize: Callable[[str], tuple[int, ...]],
    info: CoreInfo,
    *,
    longest_piece_bytes: int | None = None,
) -> list[tuple[int, ...]]:
    """Return the ids of texts to embed. What cannot fit is refused unread, if pieces are known.

    Raises:
        InvalidSyscall: a text is empty.
        ContextTooLong: a text does not fit.
    """
    ids: list[tuple[int, ...]] = []
    for place, text in enumerate(texts):
        if longest_piece_bytes is not None:
            least_tokens = len(text.encode("utf-8", "replace")) // longest_piece_bytes
            check_texts([text], [least_tokens], info, first=place)
        ids.append(tokenize(text))
        check_texts([text], [len(ids[-1])], info, first=place)
        await asyncio.sleep(0)  # each may take 40 ms: others have their turn
    return ids


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """How many failures within a window are too many, and how long there is a rest then."""

    failures: int
    window_s: float
    rest_s: float


class CircuitBreaker:
    """What keeps failing is left alone for a while, then tried again.

    Only what goes well makes up for failures. Reads a clock and touches nothing else.
    """

    def __init__(
        self, subject: str, limit: FailureLimit, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._subject = subject
        self._limit = limit
        self._clock = clock
        self._failed_at_s: deque[float] = deque(maxlen=limit.failures)
        self._open_until_s = 0.0

    def check(self) -> None:
        """Return if it may be tried.

        Raises:
            CoreError: It failed too often, too recently; `retry_after_s` is set.
        """
        wait_s = self._open_until_s - self._clock()
        if wait_s > 0:
            raise CoreError(
                f"{self._subject} failed {self._limit.failures} times within "
                f"{self._limit.window_s:g} s, or is away, and is left alone",
                remedy="see its log",
                retry_after_s=wait_s,
            )

    def failed(self) -> None:
        """Count a failure."""
        now_s = self._clock()
        self._failed_at_s.append(now_s)
        full = len(self._failed_at_s) == self._limit.failures
        if full and now_s - self._failed_at_s[0] <= self._limit.window_s:
            self._open_until_s = now_s + self._limit.rest_s
            logger.warning("%s is left alone for %g s", self._subject, self._limit.rest_s)

    def rest(self) -> None:
        """Leave it alone from now on: it is known to be away."""
        self._open_until_s = self._clock() + self._limit.rest_s
        logger.warning("%s is away, and left alone for %g s", self._subject, self._limit.rest_s)

    def succeeded(self) -> None:
        """Forget the failures: it did what it was asked."""
        if self._open_until_s:
            logger.info("%s does its work again", self._subject)
        self._failed_at_s.clear()
        self._open_until_s = 0.0


def how_it_ended(exit_code: int | None) -> str:
    """Say how a process ended."""
    if exit_code is not None and exit_code < 0:
        return f"by signal {-exit_code}"
    return f"with exit code {exit_code}"
