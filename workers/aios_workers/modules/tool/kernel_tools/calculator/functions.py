"""The functions of the calculator, by name: how many values each takes, and what it does."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
from sympy import Expr, Integer, Rational, Symbol

from aios_workers.modules.tool.kernel_tools.calculator import bounds
from aios_workers.modules.tool.kernel_tools.wrong import WrongArgument

MOST_ORDER = 50  # of a derivative, or of a series
MOST_PRIME_BITS = 4_000
Values = Any  # expressions, equations, lists of them: SymPy has no common type for these


@dataclass(frozen=True, slots=True)
class Function:
    """One function."""

    least: int
    most: int
    run: Callable[..., Values]  # takes the name of the argument first, for its errors


def _plain(function: Callable[..., Values], least: int = 1, most: int = 1) -> Function:
    return Function(least, most, lambda _, *values: function(*values))


def _log(argument: str, value: Expr, base: Expr | None = None) -> Expr:
    if value == 0 or base in (0, 1):
        raise WrongArgument(argument, "log(0) and logarithms to base 0 or 1 have no value")
    return sympy.log(value) if base is None else sympy.log(value, base)


def _root(argument: str, value: Expr, order: Expr) -> Expr:
    number = bounds.whole(order, bounds.MOST_SYMBOLIC_POWER, "the order of a root", argument)
    if number == 0:
        raise WrongArgument(argument, "there is no root of order 0")
    return sympy.real_root(value, number) if value.is_real else sympy.root(value, number)


def _round(argument: str, value: Expr, digits: Expr = sympy.S.Zero) -> Expr:
    places = bounds.whole(digits, bounds.MOST_SYMBOLIC_POWER, "the digits of round", argument)
    if not value.is_number or not value.is_real:
        raise WrongArgument(argument, "round takes a number")
    scale = Integer(10) ** places
    return sympy.floor(value * scale + Rational(1, 2)) / scale


def _factorial(argument: str, value: Expr) -> Expr:
    if isinstance(value, Rational):
        bounds.whole(value, bounds.MOST_FACTORIAL, "what factorial takes", argument)
    return sympy.factorial(value)


def _binomial(argument: str, total: Expr, chosen: Expr) -> Expr:
    for value in (total, chosen):
        if isinstance(value, Rational):
            bounds.whole(value, bounds.MOST_FACTORIAL, "what binomial takes", argument)
    return sympy.binomial(total, chosen)


def _fibonacci(argument: str, value: Expr) -> Expr:
    return sympy.fibonacci(bounds.whole(value, bounds.MOST_FACTORIAL, "what it takes", argument))


def _prime_candidate(argument: str, value: Expr) -> int:
    if not isinstance(value, Integer) or bounds.bits(value) > MOST_PRIME_BITS:
        raise WrongArgument(argument, f"it takes a whole number of {MOST_PRIME_BITS} bits at most")
    return int(value)


def _is_prime(argument: str, value: Expr) -> Values:
    return sympy.true if sympy.isprime(_prime_candidate(argument, value)) else sympy.false


def _next_prime(argument: str, value: Expr) -> Expr:
    return Integer(sympy.nextprime(_prime_candidate(argument, value)))


def _factors(argument: str, value: Expr) -> list[list[Integer]]:
    number = _prime_candidate(argument, value)
    if number == 0:
        raise WrongArgument(argument, "0 has no factors")
    found = sympy.factorint(number)
    return [[Integer(prime), Integer(power)] for prime, power in sorted(found.items())]


def _mod(argument: str, value: Expr, by: Expr) -> Expr:
    if by == 0:
        raise WrongArgument(argument, "it divides by zero")
    return sympy.Mod(value, by)


def _powmod(argument: str, base: Expr, exponent: Expr, by: Expr) -> Expr:
    if not all(isinstance(value, Integer) for value in (base, exponent, by)) or by == 0:
        raise WrongArgument(argument, "powmod takes three whole numbers, the last one not 0")
    try:
        return Integer(pow(int(base), int(exponent), int(by)))
    except ValueError:
        raise WrongArgument(argument, "there is no such power modulo that number") from None


def _integers(function: Callable[..., Expr]) -> Callable[..., Expr]:
    def run(argument: str, *values: Expr) -> Expr:
        if not all(isinstance(value, Integer) for value in values):
            raise WrongArgument(argument, "it takes whole numbers")
        return function(*values)

    return run


def _symbol(argument: str, value: Values) -> Symbol:
    if not isinstance(value, Symbol):
        raise WrongArgument(argument, "what it is by, or for, is to be a name such as x")
    return value


def _diff(argument: str, value: Expr, by: Expr, times: Expr = sympy.S.One) -> Expr:
    order = bounds.whole(times, MOST_ORDER, "the order of a derivative", argument)
    return sympy.diff(value, _symbol(argument, by), order)


def _integrate(argument: str, value: Expr, by: Expr, *ends: Expr) -> Expr:
    if len(ends) == 1:
        raise WrongArgument(argument, "integrate(f, x) or integrate(f, x, from, to)")
    over = _symbol(argument, by)
    return sympy.integrate(value, (over, *ends) if ends else over)


def _limit(argument: str, value: Expr, by: Expr, to: Expr) -> Expr:
    return sympy.limit(value, _symbol(argument, by), to)


def _series(argument: str, value: Expr, by: Expr, at: Expr, order: Expr) -> Expr:
    number = bounds.whole(order, MOST_ORDER, "the order of a series", argument)
    return sympy.series(value, _symbol(argument, by), at, number).removeO()


def _over(function: Callable[..., Expr]) -> Callable[..., Expr]:
    def run(argument: str, value: Expr, by: Expr, least: Expr, most: Expr) -> Expr:
        ends = isinstance(least, Integer) and isinstance(most, Integer)
        if ends and most - least > bounds.MOST_TERMS:
            # A closed form may do; adding up so many terms one by one does not.
            found = function(value, (_symbol(argument, by), least, Symbol("_to"))).doit()
            if found.has(sympy.Sum, sympy.Product):
                raise WrongArgument(
                    argument, f"it has more than {bounds.MOST_TERMS:,} terms and no closed form"
                )
            if function is sympy.Sum:
                return found.subs(Symbol("_to"), most)
            raise WrongArgument(argument, f"it has more than {bounds.MOST_TERMS:,} factors")
        return function(value, (_symbol(argument, by), least, most)).doit()

    return run


def _subs(argument: str, value: Expr, by: Expr, to: Expr) -> Expr:
    name = _symbol(argument, by)

    def replaced(part: Expr) -> Expr:
        if part == name:
            return to
        if not part.args:
            return part
        parts = [replaced(each) for each in part.args]
        if isinstance(part, sympy.Pow):
            bounds.check_power(parts[0], parts[1], argument)
        made = part.func(*parts)
        return bounds.checked(made, argument) if isinstance(made, Expr) else made

    return replaced(value)


def _solve(argument: str, equations: Values, unknowns: Values = None) -> Values:
    asked = equations if isinstance(equations, list) else [equations]
    if unknowns is None:
        free = {name for each in asked for name in each.free_symbols}
        if len(free) != 1:
            has = ", ".join(sorted(map(str, free))) or "none"
            raise WrongArgument(argument, f"say for which name: solve(equation, x); it has {has}")
        unknowns = free.pop()
    several = unknowns if isinstance(unknowns, list) else [unknowns]
    names = [_symbol(argument, each) for each in several]
    try:
        if len(asked) == 1 and len(names) == 1:
            found = sympy.solve(asked[0], names[0])
            return list(found) if isinstance(found, list | tuple) else found
        return sympy.solve(asked, names, dict=True)
    except NotImplementedError:
        raise WrongArgument(
            argument, "no way to solve that exactly is known here; look for a root by numbers"
        ) from None


FUNCTIONS: Mapping[str, Function] = {
    "sqrt": _plain(sympy.sqrt),
    "cbrt": Function(1, 1, lambda argument, value: _root(argument, value, Integer(3))),
    "root": Function(2, 2, _root),
    "exp": _plain(sympy.exp),
    "log": Function(1, 2, _log),
    "ln": Function(1, 1, _log),
    "log2": Function(1, 1, lambda argument, value: _log(argument, value, Integer(2))),
    "log10": Function(1, 1, lambda argument, value: _log(argument, value, Integer(10))),
    **{
        name: _plain(getattr(sympy, name))
        for name in (
            *("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh"),
            *(
                "tanh",
                "asinh",
                "acosh",
                "atanh",
                "sign",
                "gamma",
                "erf",
                "erfc",
                "zeta",
                "re",
                "im",
            ),
            *("arg", "conjugate", "simplify", "expand", "factor", "cancel", "apart", "together"),
        )
    },
    "atan2": _plain(sympy.atan2, 2, 2),
    "abs": _plain(sympy.Abs),
    "floor": _plain(sympy.floor),
    "ceil": _plain(sympy.ceiling),
    "round": Function(1, 2, _round),
    "min": _plain(sympy.Min, 1, 100),
    "max": _plain(sympy.Max, 1, 100),
    "gcd": Function(2, 100, _integers(lambda *values: Integer(math.gcd(*map(int, values))))),
    "lcm": Function(2, 100, _integers(lambda *values: Integer(math.lcm(*map(int, values))))),
    "mod": Function(2, 2, _mod),
    "powmod": Function(3, 3, _powmod),
    "factorial": Function(1, 1, _factorial),
    "binomial": Function(2, 2, _binomial),
    "fibonacci": Function(1, 1, _fibonacci),
    "is_prime": Function(1, 1, _is_prime),
    "next_prime": Function(1, 1, _next_prime),
    "factors": Function(1, 1, _factors),
    "diff": Function(2, 3, _diff),
    "integrate": Function(2, 4, _integrate),
    "limit": Function(3, 3, _limit),
    "series": Function(4, 4, _series),
    "sum": Function(4, 4, _over(sympy.Sum)),
    "product": Function(4, 4, _over(sympy.Product)),
    "subs": Function(3, 3, _subs),
    "solve": Function(1, 2, _solve),
}
# What results are written with, so that they can be asked for again.
ALIASES: Mapping[str, str] = {
    "Abs": "abs",
    "ceiling": "ceil",
    "Max": "max",
    "Min": "min",
    "Mod": "mod",
}
CONSTANTS: Mapping[str, Expr] = {
    "pi": sympy.pi,
    "tau": 2 * sympy.pi,
    "e": sympy.E,
    "E": sympy.E,
    "I": sympy.I,
    "oo": sympy.oo,
    "infinity": sympy.oo,
}
