"""Forms on an SGLang server: which it can hold, how it is asked, what its answer is read by.

The server holds an answer to a form itself, with one of several libraries ("grammar backends").
With llguidance it compiles what we compile, and allows the same texts as the other cores. xgrammar
has a notation of its own for grammars, passes over keywords of schemas that it does not know, and
puts blanks into JSON: it is asked for what it has. outlines has no grammars at all and is not used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from aios_workers.llm.constraint import JSON_STYLE
from aios_workers.llm.core import Constraint
from aios_workers.llm.tools import CALL_BEGIN, CALL_END, calls_grammar

LLGUIDANCE, XGRAMMAR = "llguidance", "xgrammar"
BACKENDS = frozenset({LLGUIDANCE, XGRAMMAR})

_FREE_BLANKS = {"whitespace_flexible": True, "item_separator": ",", "key_separator": ":"}
# Without one of these at the beginning of a line the server takes a grammar for llama.cpp's.
_SEEN_AS_LARK = re.compile(r"^\s*(%llguidance\b|start\s*:)", re.MULTILINE)


def asked_form(constraint: Constraint, backend: str | None) -> dict[str, str]:
    """Return the sampling parameter by which a server holds an answer to a form."""
    match constraint.kind:
        case "json" if backend == LLGUIDANCE:
            # Said in the schema it outweighs the server's flags.
            return {"json_schema": _guided(constraint.source, JSON_STYLE, {})}
        case "json":
            return {"json_schema": constraint.source}
        case "regex":
            return {"regex": constraint.source}
        case "grammar" if backend == XGRAMMAR and constraint.calls is not None:
            return {"structural_tag": _tag(constraint.calls)}
        case "grammar":
            marked = _SEEN_AS_LARK.search(constraint.source) is not None
            return {
                "ebnf": constraint.source if marked else f"%llguidance {{}}\n{constraint.source}"
            }


def read_form(constraint: Constraint, backend: str | None) -> Constraint:
    """Return what the answer of a server is read by: the form, with blanks where it puts some."""
    if backend != XGRAMMAR:
        return constraint
    if constraint.calls is not None:
        return Constraint("grammar", calls_grammar(_guided(constraint.calls, {}, _FREE_BLANKS)))
    if constraint.kind == "json":
        return Constraint("json", _guided(constraint.source, {}, _FREE_BLANKS))
    return constraint


def missing_form(constraint: Constraint, backend: str | None) -> str | None:
    """Return why a server cannot hold this form; None: it can."""
    if backend not in BACKENDS:
        return f"holds no forms: its server's grammar backend is {backend or 'none'}"
    if constraint.kind == "grammar" and constraint.calls is None and backend == XGRAMMAR:
        return "holds no grammars in Lark's notation: its server's grammar backend is xgrammar"
    return None


def _guided(schema: str, defaults: Mapping[str, object], overrides: Mapping[str, object]) -> str:
    """Return a schema, as text, that says itself how its JSON is written."""
    values = json.loads(schema)
    own = values.get("x-guidance") or {}
    return _dumped({**values, "x-guidance": {**defaults, **own, **overrides, "lenient": False}})


def _tag(call: str) -> str:
    """Return xgrammar's notation of a message that ends with one call, or has none.

    A part of what `calls_grammar` allows: there an answer may have several calls.
    """
    tag = {
        "type": "tag",
        "begin": CALL_BEGIN,
        "end": CALL_END,
        "content": {"type": "json_schema", "json_schema": json.loads(call)},
    }
    calls = {
        "type": "triggered_tags",
        "triggers": [CALL_BEGIN],
        "tags": [tag],
        "at_least_one": False,
        "stop_after_first": True,
    }
    return _dumped({"type": "structural_tag", "format": calls})


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
