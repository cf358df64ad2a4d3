"""The numbers among the fields of a chat, with their ranges, as the contract has them."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from aios_broker.contract.llm import LlmChat

Number = inspect.IntType | inspect.FloatType


def _number(kind: inspect.Type) -> Number | None:
    if isinstance(kind, inspect.Metadata):
        return _number(kind.type)
    if isinstance(kind, inspect.UnionType):
        numbers = [found for each in kind.types if (found := _number(each)) is not None]
        return numbers[0] if numbers else None
    if isinstance(kind, inspect.IntType):
        return kind
    if isinstance(kind, inspect.FloatType):
        return kind
    return None


NUMBERS: dict[str, Number] = {
    field.name: kind
    for field in msgspec.structs.fields(LlmChat)
    if (kind := _number(inspect.type_info(field.type))) is not None
}
_MAY_BE_NONE = {each.name for each in msgspec.structs.fields(LlmChat) if each.default is None}


def numbers(name: str) -> st.SearchStrategy[float | int | None]:
    """Return any value that a number may have."""
    kind = NUMBERS[name]
    if isinstance(kind, inspect.IntType):
        found: st.SearchStrategy[float | int | None] = st.integers(kind.ge, kind.le)
    else:
        least = kind.gt if kind.ge is None else kind.ge
        found = st.floats(least, kind.le, exclude_min=kind.ge is None)
    return st.none() | found if name in _MAY_BE_NONE else found
