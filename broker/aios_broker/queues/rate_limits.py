"""The limits of the account behind a core, kept by all workers of the fleet together.

Counted in Redis, by Redis' clock; `lua/shared/rates.lua` says how. A claim takes no job of a core
whose account has no room; this is for whoever sends: ask before each request, and say afterwards
what it took.

    permit = await rates.wait(tokens=len(prompt) + max_tokens)
    ...
    await rates.settle(permit, usage.total_tokens)
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aios_broker.contract.cores import Price, RateLimits
from aios_broker.contract.names import Module
from aios_broker.queues.functions import Functions, Steps
from aios_broker.queues.keys import Keys

MODULE: Module = "llm"
LONGEST_WAIT_S = 5.0  # until it is asked again: somebody may have used less than was thought
NO_PRICE = "-"


@dataclass(frozen=True, slots=True)
class Permit:
    """What an account said: go, or wait and ask again."""

    wait_s: float  # 0: it was counted, send it
    second: int = 0  # of Redis' clock, in which it was counted
    tokens: int = 0  # that were counted: no more than the limit


class CoreRates(Steps):
    """The account of one core."""

    def __init__(
        self, functions: Functions, core: str, limits: RateLimits, keys: Keys | None = None
    ) -> None:
        super().__init__(functions, keys)
        self.core = core
        self.limits = limits
        self._account = limits.account or core
        self._terms: tuple[str | int, ...] = (
            self._account,
            limits.requests_per_minute,
            limits.tokens_per_minute,
        )

    async def publish(self, price: Price | None = None) -> None:
        """Tell the fleet what holds for this core: claims and budgets go by it, from now on."""
        currency = NO_PRICE if price is None else price.currency
        await self._call("terms", MODULE, [self.core, *self._terms, currency])

    async def withdraw(self) -> None:
        """Take back what was published: the core has neither limits nor a price any more."""
        await self._call("terms", MODULE, [self.core, ""])

    async def acquire(self, tokens: int, *, requests: int = 1) -> Permit:
        """Count requests that are about to be sent, if the account has room for them now.

        Args:
            tokens: That they will take, prompt and answer, as far as can be told. More than the
                limit counts as the limit: such a request waits for a minute without any other.
            requests: How many.

        Returns:
            `wait_s` 0: send them. Else nothing was counted: ask again after so long.
        """
        wait_ms, second, counted = await self._call(
            "acquire",
            MODULE,
            [*self._terms, requests, tokens],
        )
        return Permit(wait_ms / 1000, second, counted)

    async def wait(self, tokens: int) -> Permit:
        """Return when one request may be sent; it is counted then."""
        while True:
            permit = await self.acquire(tokens)
            if permit.wait_s == 0:
                return permit
            await asyncio.sleep(min(permit.wait_s, LONGEST_WAIT_S))

    async def settle(self, permit: Permit, tokens: int) -> None:
        """Set right what was counted beforehand: the tokens that were really used.

        For a request that failed: what its endpoint is likely to have counted, else 0.
        """
        if permit.second and permit.tokens != tokens:
            await self._call(
                "set_right", MODULE, [self._account, permit.second, permit.tokens, tokens]
            )

    async def penalise(self, for_s: float) -> None:
        """Let nobody of the fleet send anything for so long: the endpoint asked for it (429)."""
        await self._call("penalise", MODULE, [self._account, max(1, round(for_s * 1000))])
