"""What a number may grow to: looked at before it is worked out, where the operation can do that."""

import math

import sympy
from sympy import Expr, Integer, Rational

from aios_workers.modules.tool.kernel_tools.wrong import WrongArgument

MOST_BITS = 1_000_000
MOST_DIGITS = int(MOST_BITS * math.log10(2))
MOST_SYMBOLIC_POWER = 1_000  # of what is no number: expanding it makes as many terms
MOST_FACTORIAL = 50_000
MOST_TERMS = 100_000  # that a sum over numbers adds up


def bits(value: object) -> int:
    """Return the bits of a number; 0 where it is none."""
    if not isinstance(value, Rational):
        return 0
    return max(abs(int(value.p)).bit_length(), int(value.q).bit_length())


def checked(value: Expr, argument: str) -> Expr:
    """Return a value that is no larger than it may be.

    Raises:
        WrongArgument: It is, or it has no value at all.
    """
    if bits(value) > MOST_BITS:
        raise too_large(bits(value) * math.log10(2), "a number in it", argument)
    if value in (sympy.zoo, sympy.nan):
        raise WrongArgument(
            argument, "it has no value there: it divides by zero, or is 0/0 or oo - oo"
        )
    return value


def check_power(base: Expr, exponent: Expr, argument: str) -> None:
    """Refuse a power before it is worked out.

    Raises:
        WrongArgument: It would be too large.
    """
    if not isinstance(exponent, Rational):
        return
    size = abs(exponent)
    if isinstance(base, Rational) and bits(base) > 1:
        digits = float(size) * _log10(base) if bits(size) < 1_000 else math.inf
        if digits > MOST_DIGITS:
            shown = _shown(base), _shown(exponent)
            raise too_large(digits, f"{shown[0]}**{shown[1]}", argument)
    elif not isinstance(base, Rational) and size > MOST_SYMBOLIC_POWER and not base.is_Symbol:
        raise WrongArgument(
            argument, f"a power of what is no number goes to {MOST_SYMBOLIC_POWER} at most"
        )


def too_large(digits: float, what: str, argument: str) -> WrongArgument:
    """Return the error of a number that is too large."""
    many = f"some {int(digits) + 1:,}" if digits < 1e18 else "more than 10**18"
    return WrongArgument(
        argument,
        f"{what} has {many} digits; a number may have {MOST_DIGITS:,} at most: ask for its "
        "logarithm, or for the power modulo a number (powmod(a, n, m))",
    )


def whole(value: Expr, most: int, what: str, argument: str) -> int:
    """Return a whole number from 0 to a limit.

    Raises:
        WrongArgument: It is none.
    """
    if not isinstance(value, Integer) or not 0 <= value <= most:
        raise WrongArgument(argument, f"{what} is a whole number from 0 to {most:,}")
    return int(value)


def _log10(base: Rational) -> float:
    return max(math.log10(abs(int(base.p)) or 1), math.log10(int(base.q)))


def _shown(value: Expr) -> str:
    """Return a number as it is named in words: a long one by its beginning."""
    if bits(value) > 200:
        return "..."
    text = str(value)
    return text if isinstance(value, Integer) and value >= 0 else f"({text})"
