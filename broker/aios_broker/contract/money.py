"""What the use of a core costs. Pure, and in whole numbers: nothing here is rounded on the way.

A price is given per million tokens with six digits behind the point at most, so that one token
costs a whole number of billionths of a thousandth of the currency (pico-units). What a syscall
used is added up in these, over all its slices, attempts and cores; what it is charged is that sum
in billionths (nano-units), rounded up once, over the whole syscall.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from msgspec import Struct

from aios_broker.contract.errors import InvalidConfig

if TYPE_CHECKING:
    from aios_broker.contract.cores import Price

PICO_PER_NANO = 1_000
NANO_PER_UNIT = 1_000_000_000
MAX_PRICE = 10_000.0  # per million tokens: sums of one syscall stay exact in Redis, whose numbers
# are doubles, up to 9,007 units of the currency
_PICO_PER_PRICE = 1_000_000  # one unit per million tokens is a millionth of it per token


class Billed(Struct, frozen=True, gc=False):
    """Tokens that are paid for. `prompt_tokens` counts all of the prompt, the cached ones too."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


def cost_pico(price: Price, billed: Billed) -> int:
    """Return what tokens cost at a price, in pico-units of its currency."""
    cached = min(billed.cached_tokens, billed.prompt_tokens)
    cached_price = price.input if price.cached_input is None else price.cached_input
    return (
        (billed.prompt_tokens - cached) * pico_per_token(price.input)
        + cached * pico_per_token(cached_price)
        + billed.output_tokens * pico_per_token(price.output)
    )


def pico_per_token(price: float) -> int:
    """Return what one token costs in pico-units, from the price of a million of them.

    Raises:
        InvalidConfig: the price has more digits than can be counted exactly, or is out of range.
    """
    pico = Decimal(repr(price)) * _PICO_PER_PRICE  # the digits that its owner wrote
    if not 0 <= price <= MAX_PRICE or pico != int(pico):
        raise InvalidConfig(
            f"a price of {price!r} per million tokens",
            field="price",
            remedy=f"use 0 to {MAX_PRICE:g}, with six digits behind the point at most",
        )
    return int(pico)


def nano(pico: int) -> int:
    """Return an amount in nano-units, rounded up: where a syscall's cost is rounded."""
    return -(-pico // PICO_PER_NANO)


def amount(nano_units: int) -> Decimal:
    """Return an amount in units of its currency, exactly."""
    return Decimal(nano_units).scaleb(-9)


def nano_of(text: str) -> int:
    """Read an amount that a person wrote, such as `2.50`.

    Raises:
        ValueError: no number, below nought, or with more than nine digits behind the point.
    """
    try:
        units = Decimal(text) * NANO_PER_UNIT
        whole = int(units)
    except (ArithmeticError, ValueError) as error:  # no number; not a number
        raise ValueError(f"{text!r} is no amount of money") from error
    if whole != units or whole < 0:
        raise ValueError(f"{text!r} is below nought, or has more than nine digits behind the point")
    return whole


def shown(nano_units: int, currency: str) -> str:
    """Return an amount as people read it, such as `0.0123 USD`; exact."""
    text = f"{amount(nano_units):f}"
    whole, _, rest = text.partition(".")
    return f"{whole}.{rest.rstrip('0').ljust(2, '0')} {currency}".strip()
