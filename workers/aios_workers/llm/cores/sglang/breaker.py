"""A circuit breaker: a server that keeps failing is left alone for a while, then asked once.

closed      requests go; too many failures open it
open        nothing goes, until `open_s` is over
half-open   one probe goes first: it closes the breaker, or opens it again
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from aios_broker.contract.errors import CoreError

logger = logging.getLogger(__name__)

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When it opens and for how long."""

    failures: int = 5  # within the window
    window_s: float = 30.0
    open_s: float = 5.0


class CircuitBreaker:
    """Counts failures by a clock of the caller's; touches nothing itself."""

    def __init__(self, policy: BreakerPolicy, clock: Callable[[], float]) -> None:
        self.state: State = "closed"
        self._policy = policy
        self._clock = clock
        self._failed_at: deque[float] = deque(maxlen=policy.failures)
        self._opened_at = 0.0

    def admit(self) -> Literal["go", "probe"]:
        """Say whether a request may go, or only after a probe of the server has gone well.

        Raises:
            CoreError: The server failed too often, too recently; `retry_after_s` is set.
        """
        if self.state == "open":
            wait_s = self._opened_at + self._policy.open_s - self._clock()
            if wait_s > 0:
                raise CoreError(
                    f"the SGLang server failed {self._policy.failures} times within "
                    f"{self._policy.window_s:g} s and is left alone",
                    remedy="see its log",
                    retry_after_s=wait_s,
                )
            self._become("half-open")
        return "go" if self.state == "closed" else "probe"

    def succeeded(self) -> None:
        """Note that the server did what it was asked."""
        self._failed_at.clear()
        self._become("closed")

    def probed_well(self) -> None:
        """Note that the server answers. Alone that does not outweigh generations that fail."""
        if self.state == "half-open":
            self.succeeded()

    def failed(self) -> None:
        """Note that it did not."""
        now = self._clock()
        self._failed_at.append(now)
        full = len(self._failed_at) == self._policy.failures
        if self.state == "half-open" or (
            full and now - self._failed_at[0] <= self._policy.window_s
        ):
            self._opened_at = now
            self._become("open")

    def _become(self, state: State) -> None:
        if state != self.state:
            level = logging.INFO if state == "closed" else logging.WARNING
            logger.log(level, "circuit breaker of the SGLang server: %s -> %s", self.state, state)
            self.state = state
