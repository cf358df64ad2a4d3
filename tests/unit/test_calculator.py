"""The calculator: exact, without ever evaluating a text, and what would not end is refused."""

from __future__ import annotations

import ast
import resource
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.tool_catalogue import read_folder
from aios_workers.modules.tool.kernel_tool_entries import ROOM
from aios_workers.modules.tool.kernel_tools.calculator import calculator
from aios_workers.modules.tool.kernel_tools.calculator.bounds import MOST_DIGITS
from aios_workers.modules.tool.kernel_tools.calculator.calculator import calculate
from aios_workers.modules.tool.kernel_tools.calculator.functions import FUNCTIONS
from aios_workers.modules.tool.kernel_tools.calculator.grammar import read
from aios_workers.modules.tool.kernel_tools.wrong import TooLong, WrongArgument

pytestmark = pytest.mark.timeout(120)


def exact(expression: str, **options: Any) -> Any:  # noqa: ANN401
    found = calculate(expression, **options)
    return [each["exact"] for each in found["results"]] if "results" in found else found["exact"]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("0.1 + 0.2", "3/10"),
        ("0.1 + 0.2 == 0.3", "true"),
        ("2**200 - 2**200 + 1", str(1)),
        ("123456789012345678901234567890 * 10", "1234567890123456789012345678900"),
        ("2^10", "1024"),
        ("2^3^2", "512"),
        ("-2^2", "-4"),
        ("7 // 2 + 7 % 4", "6"),
        ("1e-3", "1/1000"),
        ("1_000 + 0x10", "1016"),
        ("2 × 3 ÷ 4", "3/2"),  # noqa: RUF001
        ("sqrt(8)", "2*sqrt(2)"),
        ("root(27, 3)", "3"),
        ("log(8, 2)", "3"),
        ("round(2.675, 2)", "67/25"),
        ("gcd(12, 18) + lcm(4, 6)", "18"),
        ("binomial(50, 25)", "126410606437752"),
        ("powmod(3, 10**50, 7)", "4"),
        ("is_prime(2**127 - 1)", "true"),
        ("exp(I*pi)", "-1"),
        ("diff(x**3, x)", "3*x**2"),
        ("integrate(x, x, 0, 2)", "2"),
        ("limit(sin(x)/x, x, 0)", "1"),
        ("sum(n, n, 1, 10**9)", "500000000500000000"),
        ("expand((x + 1)^2)", "x**2 + 2*x + 1"),
        ("subs(x**2 + y, x, 3)", "y + 9"),
        ("solve(x^2 = 2, x)", ["-sqrt(2)", "sqrt(2)"]),
        ("solve(x^2 = 4)", ["-2", "2"]),
        ("+".join(map(str, range(300))), "44850"),
        ("factors(360)", None),
    ],
)
def test_what_it_finds_is_exact(expression: str, value: object) -> None:
    if value is None:
        found = calculate(expression)["results"]
        assert [[each["exact"] for each in pair] for pair in found] == [
            ["2", "3"],
            ["3", "2"],
            ["5", "1"],
        ]
    else:
        assert exact(expression) == value


def test_a_system_is_solved_by_names() -> None:
    [solution] = calculate("solve([x + y = 3, x - y = 1], [x, y])")["results"]
    assert {name: each["exact"] for name, each in solution.items()} == {"x": "2", "y": "1"}


def test_digits_are_as_many_as_asked_for() -> None:
    assert calculate("pi", digits=50)["decimal"] == (
        "3.1415926535897932384626433832795028841971693993751"
    )
    assert calculate("1/7", digits=5)["decimal"] == "0.14286"
    assert calculate("10**30", digits=5)["decimal"] == "1e30"
    assert calculate("sqrt(-2)", digits=4)["decimal"] == "0 + 1.414*I"


def test_names_have_the_values_that_are_given() -> None:
    assert exact("price * (1 + rate)", variables={"price": 200, "rate": 0.05}) == "210"
    assert exact("x + y", variables={"x": "1/3", "y": "sqrt(2)^2"}) == "7/3"
    for name in ("pi", "sin", "a b", ""):
        with pytest.raises(WrongArgument, match="name of a value") as caught:
            calculate("1", {name: 1})
        assert caught.value.aios_says == {"argument": "variables"}


fractions = st.fractions(max_denominator=10**6)


@given(st.lists(fractions, min_size=1, max_size=6), st.data())
def test_arithmetic_is_that_of_fractions(values: list[Any], data: st.DataObject) -> None:
    text, found = f"({values[0]})", values[0]
    for value in values[1:]:
        sign = data.draw(st.sampled_from("+-*"))
        text = f"({text} {sign} ({value}))"
        found = {"+": found + value, "-": found - value, "*": found * value}[sign]
    assert exact(text) == str(found)


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=6, min_value=-(10**9), max_value=10**9
    )
)
def test_a_decimal_is_the_number_that_it_says(value: Any) -> None:  # noqa: ANN401
    assert exact(f"{value:f} * 10**6 == {int(value * 10**6)}") == "true"


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("9**9**9", "9\\*\\*387420489 has some 369,693,100 digits; a number may have"),
        ("9^9^9", "369,693,100 digits"),
        ("2**1100000", r"2\*\*1100000 has some 331,133 digits"),
        ("subs(9**x, x, 9**9)", "369,693,100 digits"),
        ("subs((x**x)**x, x, 9**9)", "digits"),
        ("2**(1/0)", "divides by zero"),
        ("1/0", "divides by zero"),
        ("0**-1", "divides by zero"),
        ("5 % 0", "divides by zero"),
        ("oo - oo", "no value"),
        ("1e99999", "exponent"),
        ("factorial(10**9)", "from 0 to"),
        ("binomial(10**9, 5)", "from 0 to"),
        ("(x + 1)**100000", "no number goes to"),
        ("sum(sin(n), n, 1, 10**12)", "100,000 terms"),
        ("product(n, n, 1, 10**12)", "100,000 factors"),
        ("diff(x, x, 1000)", "order of a derivative"),
        ("2x + 1", "write products with \\*"),
        ("5!", "factorial"),
        ("1,500.25 + $3", "without signs"),
        ("x^2 = 4", "write solve\\(x\\^2 = 4, x\\)"),
        ("solve(x + y = 1)", "for which name"),
        ("solve(x = x^x + 1, 3)", "to be a name"),
        ("sqr(2)", "did you mean sqrt"),
        ("sin(1, 2)", "takes 1 values, not 2"),
        ("sin([1])", "no lists"),
        ("[1] + 1", "a list"),
        ("(1 = 2) + 1", "a list or a comparison"),
        ("sin", "is a function"),
        ("1 < 2 < 3", "two values at a time"),
        ("gcd(1/2, 3)", "whole numbers"),
        ("log(0)", "no value"),
        ("1 +", "no expression"),
        ("", "no expression"),
        ("a" * 50, "no name"),
        ("(" * 300 + "1" + ")" * 300, "nested"),
        ("-" * 100 + "1", "nested deeper"),
        ("+".join(["1"] * 2_000), "parts|deep"),
        ("\x00", "no expression has|no expression"),
        (" + ".join(f"x{n}" for n in range(60)), "more than 50 names"),
    ],
)
def test_what_will_not_do_is_said_in_words(expression: str, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(WrongArgument, match=words) as caught:
        calculate(expression)
    assert caught.value.aios_says == {"argument": "expression"}
    assert time.monotonic() - began < 20.0


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "x.__class__",
        "().__class__.__bases__",
        "[x for x in (1, 2)]",
        "lambda: 1",
        "x[0]",
        "'text'",
        "b'x'",
        "f'{x}'",
        "True",
        "None",
        "...",
        "1j",
        "x if y else z",
        "x and y",
        "not x",
        "(x := 1)",
        "{1: 2}",
        "{1}",
        "sin(*x)",
        "sin(x=1)",
        "(lambda: 1)()",
        "x()()",
        "await x",
        "yield",
        "~1",
        "1 @ 2",
        "1 << 2",
        "1 & 2",
        "x in y",
        "x is y",
        "__x",
        "eval('1')",
        "open('/etc/passwd')",
    ],
)
def test_nothing_but_a_calculation_is_read(expression: str) -> None:
    with pytest.raises(WrongArgument):
        calculate(expression)


@pytest.mark.parametrize("text", ["x.y", "x[0]", "lambda: 1", "[x for x in y]", "x if y else z"])
def test_no_other_node_is_read_at_all(text: str) -> None:
    with pytest.raises(WrongArgument, match="no part of a calculation"):
        read(text, "expression")


@given(st.text(max_size=60))
def test_any_text_is_a_tree_of_known_nodes_or_refused(text: str) -> None:
    try:
        tree, _ = read(text, "expression")
    except WrongArgument:
        return
    banned = (ast.Attribute, ast.Subscript, ast.Lambda, ast.JoinedStr, ast.comprehension)
    assert not any(isinstance(node, banned) for node in ast.walk(tree))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # then once more
def test_what_takes_too_long_is_told_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calculator, "LIMIT_S", 0.5)
    began = time.monotonic()
    with pytest.raises(TooLong, match=r"took longer than 0\.5 s") as caught:
        calculate("expand((a + b + c + d + f + g)**60)")
    assert caught.value.aios_says == {"argument": "expression"}
    assert time.monotonic() - began < 30.0


def test_a_long_value_is_told_by_its_digits() -> None:
    found = calculate("2**100000")
    assert "exact" not in found
    assert "30,103 digits" in found["exact_cut"]
    assert found["decimal"] == "9.99002093014385e30102"


def test_the_largest_number_takes_little() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    calculate(f"10**{MOST_DIGITS - 10} + 1")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 10.0


def test_its_description_names_each_function() -> None:
    said = read_folder(ROOM / "calculator").description
    missing = {name for name in FUNCTIONS if name not in said}
    assert missing <= {
        *("cot", "sec", "csc", "asinh", "acosh", "atanh", "gamma", "erf", "erfc", "zeta"),
        *("re", "im", "arg", "conjugate", "cbrt"),
    }
