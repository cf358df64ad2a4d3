"""What a line is held against: a text, or a pattern in time that grows with the line alone."""

import re
from collections.abc import Callable

import jsonschema_rs

from aios_workers.modules.tool.kernel_tools.wrong import WrongArgument

MOST_PATTERN_BYTES = 1 << 20  # of what a pattern is compiled to
_BACKTRACKING = re.compile(r"\(\?<?[=!]|\\[1-9]|\\k<")


def matcher(pattern: str, *, regex: bool, ignore_case: bool) -> Callable[[str], bool]:
    """Return what says whether a line has it.

    The engine is that of the schemas of arguments, in which no pattern takes exponential time.

    Raises:
        WrongArgument: It is no pattern, or one that only such an engine has.
    """
    if not regex:
        if not ignore_case:
            return lambda line: pattern in line
        folded = pattern.casefold()
        return lambda line: folded in line.casefold()
    text = f"(?i:{pattern})" if ignore_case else pattern
    options = jsonschema_rs.RegexOptions(size_limit=MOST_PATTERN_BYTES)
    try:
        return jsonschema_rs.Draft202012Validator(
            {"pattern": text}, pattern_options=options
        ).is_valid
    except (jsonschema_rs.ValidationError, ValueError):
        raise WrongArgument("pattern", _why(pattern)) from None


def _why(pattern: str) -> str:
    if _BACKTRACKING.search(pattern):
        return (
            "look-around and back references are not supported: match more, and look at the lines"
        )
    return (
        "it is no regular expression, or one that grows too large; for a text as it is leave "
        "`regex` out, or write \\ before . * + ? ( ) [ ] { } | ^ $"
    )
