"""What a run is charged: the tokens that are paid for, and what they cost. Counted here alone."""

import msgspec

from aios_broker.contract.cores import Price
from aios_broker.contract.money import Billed, cost_pico, nano
from aios_broker.contract.reply import Usage
from aios_broker.queues.records import Charge, Lease


class Tally:
    """What one core is paid for in one run, since its claim. Earlier runs are the lease's.

    Where an endpoint counts (`bills_requests`), each of its requests is paid as it says. Elsewhere
    the kernel counts: the prompt once per syscall and core, however often it is read again,
    and the output tokens that the run is charged.
    """

    def __init__(
        self, core: str, price: Price | None, lease: Lease, *, bills_requests: bool = False
    ) -> None:
        self._core = core
        self._price = price
        self._lease = lease
        self._bills_requests = bills_requests
        self._was_read = core in lease.read_by
        self._prompt_tokens = 0
        self._cached_tokens: int | None = None  # None: no step has come
        self._output_tokens = 0
        self._billed = Billed()

    def prompt(self, tokens: int) -> None:
        """Note how long the prompt is."""
        self._prompt_tokens = tokens

    def output(self, tokens: int) -> None:
        """Note output tokens that were generated."""
        self._output_tokens += tokens

    def step(self, cached_tokens: int, billed: Billed | None) -> None:
        """Note what a step of the core says: of the first one, how much needed no prefill."""
        if self._prompt_tokens and self._cached_tokens is None:
            self._cached_tokens = cached_tokens
        if billed is not None:
            before = self._billed
            self._billed = Billed(
                before.prompt_tokens + billed.prompt_tokens,
                before.cached_tokens + billed.cached_tokens,
                before.output_tokens + billed.output_tokens,
            )

    @property
    def prompt_tokens(self) -> int:
        """How long the prompt is, as whoever counts it says; before an endpoint has, nothing."""
        return self._billed.prompt_tokens if self._bills_requests else self._prompt_tokens

    @property
    def billed(self) -> Billed:
        """The tokens that are paid for."""
        if self._bills_requests:
            return self._billed
        prompt = 0 if self._was_read else self._prompt_tokens
        return Billed(prompt, min(prompt, self._cached_tokens or 0), self._output_tokens)

    @property
    def charge(self) -> Charge:
        """What the queue is told: totals since the claim."""
        billed, price = self.billed, self._price
        if price is None:
            return Charge(self._core, cached_tokens=billed.cached_tokens)
        cost = cost_pico(price, billed)
        return Charge(self._core, cost, price.currency, billed.cached_tokens)

    def completed(self, usage: Usage) -> Usage:
        """Return the usage of a reply with what the syscall was charged in all its runs."""
        charge, lease = self.charge, self._lease
        currency = charge.currency or lease.currency
        cost: int | None = None
        if currency:
            earlier = lease.cost_pico if lease.currency in ("", currency) else 0
            cost = nano(earlier + charge.cost_pico)
        cached = min(usage.prompt_tokens, lease.cached_tokens + charge.cached_tokens)
        return msgspec.structs.replace(
            usage, cached_tokens=cached, cost_nano=cost, currency=currency
        )
