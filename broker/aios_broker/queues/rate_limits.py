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
from collections.abc import Callable
from dataclasses import dataclass

from aios_broker.contract.cores import CoreCard, RateLimits
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
    account: str = ""  # where


@dataclass(frozen=True, slots=True)
class Terms:
    """What a core's workers have told of it: its account's limits, and what it is paid in."""

    core: str
    account: str
    requests_per_minute: int  # 0: any number
    tokens_per_minute: int
    currency: str  # empty: it has no price


class Rates(Steps):
    """Reads what is known of all cores' accounts."""

    async def terms(self) -> list[Terms]:
        """Return the terms of all cores that have any, in the order of their names."""
        flat = await self._execute("HGETALL", self.keys.own("terms"))
        return [_terms(*pair) for pair in sorted(zip(flat[::2], flat[1::2], strict=True))]


def terms_row(card: CoreCard) -> list[str | int]:
    """Return what the step `terms` is told of a core when its worker registers.

    Its account is the core's own unless it names another. A core with neither limits nor a price
    has no terms; an endpoint's has, since it may ask all workers for a pause.
    """
    limits = card.limits
    if limits == RateLimits() and not card.currency and card.kind != "openai":
        return [card.name, ""]
    return [card.name, *_account(card.name, limits), card.currency or NO_PRICE]


def _account(core: str, limits: RateLimits) -> tuple[str, int, int]:
    return limits.account or core, limits.requests_per_minute, limits.tokens_per_minute


def _terms(core: bytes, packed: bytes) -> Terms:
    account, requests, tokens, currency = packed.decode().split()
    return Terms(
        core.decode(),
        account,
        int(requests),
        int(tokens),
        "" if currency == NO_PRICE else currency,
    )


class CoreRates(Steps):
    """The account of one core. Its limits are asked for each time: they may change."""

    def __init__(
        self,
        functions: Functions,
        core: str,
        limits: Callable[[], RateLimits],
        keys: Keys | None = None,
    ) -> None:
        super().__init__(functions, keys)
        self.core = core
        self._limits = limits

    async def acquire(self, tokens: int, *, requests: int = 1) -> Permit:
        """Count requests that are about to be sent, if the account has room for them now.

        Args:
            tokens: That they will take, prompt and answer, as far as can be told. More than the
                limit counts as the limit: such a request waits for a minute without any other.
            requests: How many.

        Returns:
            `wait_s` 0: send them. Else nothing was counted: ask again after so long.
        """
        account, *limits = _account(self.core, self._limits())
        wait_ms, second, counted = await self._call(
            "acquire", MODULE, [account, *limits, requests, tokens]
        )
        return Permit(wait_ms / 1000, second, counted, account)

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
                "set_right", MODULE, [permit.account, permit.second, permit.tokens, tokens]
            )

    async def penalise(self, for_s: float) -> None:
        """Let nobody of the fleet send anything for so long: the endpoint asked for it (429)."""
        account = _account(self.core, self._limits())[0]
        await self._call("penalise", MODULE, [account, max(1, round(for_s * 1000))])
