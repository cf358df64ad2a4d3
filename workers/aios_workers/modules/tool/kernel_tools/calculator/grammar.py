"""Expressions as text, read into a tree of few kinds of nodes; nothing here is ever evaluated.

Python's own parser makes the tree, so precedence is Python's. What is no part of a calculation (a
text, an attribute, an index, a lambda, a keyword) is refused by its kind.
"""

import ast
import re

from aios_workers.modules.tool.kernel_tools.wrong import WrongArgument

MOST_LEVELS = 60
MOST_NODES = 1_000
MOST_NAME = 40  # characters
# As people write them: times, a dot, divided by, minus, and comparisons.
_SIGNS = str.maketrans(
    {
        "\u00d7": "*",
        "\u00b7": "*",
        "\u00f7": "/",
        "\u2212": "-",
        "\u2264": "<=",
        "\u2265": ">=",
        "\u2260": "!=",
    }
)
_SINGLE = re.compile(r"(?<![<>=!])=(?!=)")
_NUMBER = re.compile(
    r"([0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]([+-]?[0-9]+))?|0[xX][0-9a-fA-F]+|0[bB][01]+"
)
_NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Load, ast.Constant, ast.List),
    *(ast.Tuple, ast.Compare, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow),
    *(ast.UAdd, ast.USub, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)
_HINTS = (
    (re.compile(r"[0-9)]\s*[A-Za-z(]"), "write products with *: 2*x, 3*(a + b)"),
    (re.compile(r"!(?!=)"), "write n! as factorial(n)"),
    (re.compile(r"[|]"), "write |x| as abs(x)"),
    (re.compile(r"[$€£]|[0-9],[0-9]{3}"), "write numbers without signs and commas: 1500.25"),
)


def read(text: str, argument: str) -> tuple[ast.expr, str]:
    """Return the tree of an expression, and the text that its places are in.

    Raises:
        WrongArgument: It is none.
    """
    source = _SINGLE.sub("==", text.translate(_SIGNS).replace("^", "**")).strip()
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise WrongArgument(argument, _why(text, error)) from None
    count = _check(tree, 0, argument)
    if count > MOST_NODES:
        raise WrongArgument(argument, f"it has {count} parts, the limit is {MOST_NODES}")
    return tree.body, source


def number_text(node: ast.Constant, source: str, argument: str) -> str:
    """Return a number as it is written: a float would not be what was meant.

    Raises:
        WrongArgument: It is none.
    """
    written = (ast.get_source_segment(source, node) or "").replace("_", "")
    if isinstance(node.value, bool) or not _NUMBER.fullmatch(written):
        raise WrongArgument(argument, f"{str(node.value)[:40]!r} is no number")
    return written


def _check(node: ast.AST, level: int, argument: str) -> int:
    """Return how many nodes there are; what is no part of a calculation is refused."""
    if not isinstance(node, _NODES):
        kind = type(node).__name__
        raise WrongArgument(
            argument,
            f"{kind} is no part of a calculation; use numbers, names, "
            "+ - * / // % **, comparisons, lists and functions by name",
        )
    if level > MOST_LEVELS:
        raise WrongArgument(argument, f"it is nested deeper than {MOST_LEVELS} levels")
    if isinstance(node, ast.Call) and (node.keywords or not isinstance(node.func, ast.Name)):
        raise WrongArgument(
            argument, "functions are called by name, their values in order: f(a, b)"
        )
    if isinstance(node, ast.Compare) and len(node.ops) > 1:
        raise WrongArgument(argument, "compare two values at a time")
    if isinstance(node, ast.Name) and (len(node.id) > MOST_NAME or node.id.startswith("_")):
        raise WrongArgument(
            argument,
            f"{node.id[:MOST_NAME]!r} is no name: letters, digits and _, "
            f"{MOST_NAME} at most, beginning with a letter",
        )
    count = 1
    for child in ast.iter_child_nodes(node):
        # A long sum is a deep tree, and no deep nesting.
        is_chained = isinstance(node, ast.BinOp) and child is node.left
        count += _check(child, level + (not is_chained), argument)
    return count


def _why(text: str, error: BaseException) -> str:
    hint = next((hint for pattern, hint in _HINTS if pattern.search(text)), "")
    if not isinstance(error, SyntaxError):
        return "it is nested too deep, or has signs that no expression has"
    where = f" at {error.offset}" if error.offset else ""
    return f"it is no expression: {error.msg}{where}" + (f"; {hint}" if hint else "")
