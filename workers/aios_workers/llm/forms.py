"""The form that an answer is held to, as a core takes it."""

from __future__ import annotations

import json

from aios_broker.contract.llm import Format, GrammarFormat, JsonFormat, LlmChat, RegexFormat
from aios_workers.llm.core import Constraint, CoreInfo
from aios_workers.llm.tools import Toolbox, constraint_of

_ANY_OBJECT = {"type": "object"}


def constraint_of_chat(body: LlmChat, toolbox: Toolbox | None, info: CoreInfo) -> Constraint | None:
    """Return what the whole answer must be; None: anything.

    A core that holds no constraints, but whose template knows tools, is left to itself.
    """
    if not info.capabilities.constraints:
        return None
    if toolbox is not None:
        return constraint_of(toolbox)
    return constraint_of_format(body.format) if body.format is not None else None


def constraint_of_format(wanted: Format) -> Constraint:
    """Return a format as a constraint."""
    match wanted:
        case JsonFormat(json_schema=schema):
            schema = _ANY_OBJECT if schema is None else schema
            return Constraint("json", json.dumps(schema, ensure_ascii=False))
        case RegexFormat(pattern=pattern):
            return Constraint("regex", pattern)
        case GrammarFormat(grammar=grammar):
            return Constraint("grammar", grammar)
