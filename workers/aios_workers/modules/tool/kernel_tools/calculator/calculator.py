"""The calculator: an expression in, its exact value and its digits out."""

import ast
import decimal
import difflib
import operator
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import sympy
from sympy import Expr, Integer, Rational, Symbol

from aios_workers.modules.tool.kernel_tools.calculator import bounds
from aios_workers.modules.tool.kernel_tools.calculator.functions import (
    ALIASES,
    CONSTANTS,
    FUNCTIONS,
)
from aios_workers.modules.tool.kernel_tools.calculator.grammar import number_text, read
from aios_workers.modules.tool.kernel_tools.wrong import TooLong, WrongArgument

LIMIT_S = 10.0
MOST_EXPONENT = 10_000  # of a number that is written with one
MOST_TEXT = 20_000  # characters of an exact value
MOST_SYMBOLS = 50
RECURSION = 10_000  # a sum of a thousand terms is so deep a tree
EXACT_BITS = 20_000  # of numbers that are divided by decimals: of larger ones it takes long
MOST_LISTED = 200
_PLAIN_FROM = -7  # the least exponent of a decimal that is written without one
_OPERATIONS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda left, right: sympy.floor(left / right),
    ast.Mod: sympy.Mod,
    ast.Pow: operator.pow,
}
_RELATIONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: sympy.Eq,
    ast.NotEq: sympy.Ne,
    ast.Lt: sympy.Lt,
    ast.LtE: sympy.Le,
    ast.Gt: sympy.Gt,
    ast.GtE: sympy.Ge,
}


def calculate(
    expression: str, variables: Mapping[str, Any] | None = None, digits: int = 15
) -> dict[str, Any]:
    """Return `exact` and `decimal` of an expression, or `results` with both of each."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), RECURSION))
    sys.set_int_max_str_digits(bounds.MOST_DIGITS + 1_000)
    signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S, 1.0)
    try:
        found = _found(expression, variables or {})
        shown = _shown(found, digits)
    except RecursionError:
        raise WrongArgument("expression", "it is nested too deep to be worked out") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return shown if isinstance(shown, dict) else {"results": shown}


def _too_long(*_: object) -> None:
    raise TooLong("expression", f"it took longer than {LIMIT_S:g} s: ask for less at a time")


def _found(expression: str, variables: Mapping[str, Any]) -> Any:  # noqa: ANN401
    names: dict[str, Any] = {}
    for name, given in variables.items():
        if not name.isidentifier() or name in FUNCTIONS or name in CONSTANTS:
            raise WrongArgument("variables", f"{name[:60]!r} cannot be the name of a value")
        text = given if isinstance(given, str) else decimal_text(given)
        names[name] = _Evaluation(text, "variables", {}).value()
    found = _Evaluation(expression, "expression", names).value()
    if isinstance(found, sympy.Equality):
        unknown = sorted(map(str, found.free_symbols))
        asked = unknown[0] if unknown else "x"
        raise WrongArgument(
            "expression", f"it is an equation; to solve it write solve({expression[:200]}, {asked})"
        )
    return found


def decimal_text(given: float) -> str:
    """Return a JSON number as it was most likely written."""
    return format(decimal.Decimal(repr(given)), "f")


class _Evaluation:
    """One text that is worked out."""

    def __init__(self, text: str, argument: str, names: Mapping[str, Any]) -> None:
        self._tree, self._source = read(text, argument)
        self._argument = argument
        self._names = names
        self._symbols: dict[str, Symbol] = {}

    def value(self) -> Any:  # noqa: ANN401  numbers, expressions, equations, lists
        return self._of(self._tree)

    def _of(self, node: ast.expr) -> Any:  # noqa: ANN401
        found: Any = None
        match node:
            case ast.Constant():
                found = self._number(node)
            case ast.Name(id=name):
                found = self._name(name)
            case ast.UnaryOp(op=sign, operand=part):
                value = self._operand(part)
                found = -value if isinstance(sign, ast.USub) else value
            case ast.BinOp(op=sign):
                left, right = self._operand(node.left), self._operand(node.right)
                found = bounds.checked(self._applied(sign, left, right), self._argument)
            case ast.Compare(ops=[relation]):
                sides = self._operand(node.left), self._operand(node.comparators[0])
                found = self._compared(_RELATIONS[type(relation)], *sides)
            case ast.Call(func=ast.Name(id=name)):
                found = self._called(name, [self._of(each) for each in node.args])
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                found = [self._of(each) for each in parts]
            case _:
                raise WrongArgument(self._argument, f"{type(node).__name__} is no calculation")
        return found

    def _operand(self, node: ast.expr) -> Expr:
        value = self._of(node)
        if not isinstance(value, Expr):
            raise WrongArgument(self._argument, "a list or a comparison is no number and no term")
        return value

    def _number(self, node: ast.Constant) -> Expr:
        text = number_text(node, self._source, self._argument).lower()
        if text.startswith(("0x", "0b")):
            return Integer(int(text, 0))
        digits, _, exponent = text.partition("e")
        if exponent and abs(int(exponent)) > MOST_EXPONENT:
            raise WrongArgument(
                self._argument, f"the exponent of {text[:40]} is beyond {MOST_EXPONENT:,}"
            )
        whole, _, part = digits.partition(".")
        value = Rational(int(whole + part or "0"), 10 ** len(part))
        return value * Integer(10) ** int(exponent or 0)

    def _name(self, name: str) -> Any:  # noqa: ANN401
        if name in self._names:
            return self._names[name]
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in FUNCTIONS:
            raise WrongArgument(self._argument, f"{name} is a function: write {name}(...)")
        if len(self._symbols) >= MOST_SYMBOLS:
            raise WrongArgument(self._argument, f"it has more than {MOST_SYMBOLS} names")
        return self._symbols.setdefault(name, Symbol(name))

    def _applied(self, sign: ast.operator, left: Expr, right: Expr) -> Expr:
        divides = isinstance(sign, ast.Div | ast.FloorDiv | ast.Mod)
        negative = isinstance(sign, ast.Pow) and left == 0 and right.is_negative
        if (divides and right == 0) or negative:
            raise WrongArgument(self._argument, "it divides by zero")
        if isinstance(sign, ast.Pow):
            bounds.check_power(left, right, self._argument)
        return _OPERATIONS[type(sign)](left, right)

    def _compared(self, relation: Callable[[Any, Any], Any], left: Expr, right: Expr) -> Any:  # noqa: ANN401
        found = relation(left, right)
        if found in (sympy.true, sympy.false) or found.free_symbols:
            return found
        return relation(sympy.simplify(left - right), 0)

    def _called(self, name: str, values: list[Any]) -> Any:  # noqa: ANN401
        function = FUNCTIONS.get(ALIASES.get(name, name))
        if function is None:
            near = difflib.get_close_matches(name, FUNCTIONS, 3)
            hint = (
                f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(FUNCTIONS)}"
            )
            raise WrongArgument(self._argument, f"there is no function {name!r}; {hint}")
        if not function.least <= len(values) <= function.most:
            least, most = function.least, function.most
            takes = str(least) if least == most else f"{least} to {most}"
            raise WrongArgument(self._argument, f"{name} takes {takes} values, not {len(values)}")
        if name != "solve" and not all(isinstance(value, Expr) for value in values):
            raise WrongArgument(
                self._argument, f"{name} takes numbers and terms, no lists or equations"
            )
        try:
            found = function.run(self._argument, *values)
        except (ValueError, TypeError, ZeroDivisionError, NotImplementedError) as error:
            why = str(error).partition("\n")[0][:200] or type(error).__name__
            raise WrongArgument(self._argument, f"{name} cannot do that: {why}") from None
        return bounds.checked(found, self._argument) if isinstance(found, Expr) else found


def _shown(value: Any, digits: int) -> Any:  # noqa: ANN401
    """Return a value as it is told."""
    if isinstance(value, list | tuple):
        if len(value) > MOST_LISTED:
            raise WrongArgument("expression", f"it has {len(value)} results, {MOST_LISTED} at most")
        return [_shown(each, digits) for each in value]
    if isinstance(value, dict):
        return {str(name): _shown(each, digits) for name, each in value.items()}
    if value in (sympy.true, sympy.false):
        return {"exact": str(value).lower()}
    told: dict[str, Any] = {}
    if (size := bounds.bits(value)) > MOST_TEXT:
        told["exact_cut"] = f"it has some {int(size * 0.30103):,} digits, and is not written out"
    elif len(text := str(value)) > MOST_TEXT:
        told["exact_cut"] = f"it has {len(text):,} characters, and is not written out"
    else:
        told["exact"] = text
    if (number := _decimal(value, digits)) is not None:
        told["decimal"] = number
    return told


def _decimal(value: Any, digits: int) -> str | None:  # noqa: ANN401
    """Return a number with so many digits; None: it is none."""
    context = decimal.Context(prec=digits, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
    if isinstance(value, Rational) and value.is_finite and bounds.bits(value) <= EXACT_BITS:
        parts = (decimal.Decimal(int(part)) for part in (value.p, value.q))
        return _written(context.divide(*parts), digits)
    if not getattr(value, "is_number", False) or getattr(value, "is_infinite", False):
        return None
    found = value.evalf(digits + 5)
    if isinstance(found, sympy.Float):
        return _written(context.create_decimal(str(found)), digits)
    if found.has(sympy.I) and all(
        part.is_Float or part.is_Rational for part in found.as_real_imag()
    ):
        real, imaginary = (_decimal(part, digits) for part in found.as_real_imag())
        return f"{real} + {imaginary}*I".replace("+ -", "- ")
    return None


def _written(number: decimal.Decimal, digits: int) -> str:
    number = number.normalize(decimal.Context(digits, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN))
    if _PLAIN_FROM <= number.adjusted() < digits:
        return format(number, "f")
    return format(number, "e").replace("e+", "e")
