"""Calls as marks around something: for servers whose forms are such, and no grammars of ours. Pure.

A part of what `calls_grammar` allows: one call, and for Gemma's notation strings in which the
beginning of a quote is followed by what cannot go on as one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from aios_workers.llm.chat.calls import CallFormat, CallSchemas


@dataclass(frozen=True, slots=True)
class CallTag:
    """One call. Without a beginning, an answer that begins with a brace is one."""

    begin: str
    end: str
    schema: str = ""  # of the JSON between them, as text
    grammar: str = ""  # in EBNF, where it is no JSON


def call_tags(call_format: CallFormat, schemas: CallSchemas) -> tuple[CallTag, ...]:
    """Return what calls of a family are."""
    begin = call_format.begin + call_format.call_begin
    end = call_format.call_end + call_format.end
    match call_format.shape:
        case "object":
            return (CallTag(begin, end, schemas.call),)
        case "list":
            return (CallTag(f"{begin}[", f"]{end}", schemas.call),)
        case "named":
            return tuple(
                CallTag(f"{begin}{name}{call_format.after_name}", end, schema)
                for name, schema in schemas.arguments
            )
        case "quoted":
            fields = _quoted_fields(call_format.quote)
            return tuple(
                CallTag(f"{begin}{name}{{", f"}}{end}", grammar=fields)
                for name, _ in schemas.arguments
            )


def tags_format(tags: Sequence[CallTag], trigger: str) -> dict[str, object]:
    """Return xgrammar's form of a message, or of one with a call behind it."""
    if not trigger:
        message = {"type": "regex", "pattern": r"[ \n\r\t]*([^{ \n\r\t](.|\n)*)?"}
        return {"type": "or", "elements": [message, *(_content(tag) for tag in tags)]}
    return {
        "type": "triggered_tags",
        "triggers": [trigger],
        "tags": [
            {"type": "tag", "begin": tag.begin, "content": _content(tag), "end": tag.end}
            for tag in tags
        ],
        "at_least_one": False,
        "stop_after_first": True,
    }


def _content(tag: CallTag) -> dict[str, object]:
    if tag.grammar:
        return {"type": "grammar", "grammar": tag.grammar}
    schema = json.loads(tag.schema)
    schema.pop("x-guidance", None)
    return {"type": "json_schema", "json_schema": schema}


def _quoted_fields(quote: str) -> str:
    """Return the fields of an object whose strings stand between marks, in EBNF."""
    mark = json.dumps(quote, ensure_ascii=False)
    first, second = _in_class(quote[0]), _in_class(quote[1])
    return "\n".join(
        (
            "root ::= fields?",
            'fields ::= field ("," field)*',
            'field ::= [A-Za-z0-9_.-]+ ":" value',
            'value ::= text | number | "true" | "false" | "null" | "[" values? "]" '
            '| "{" fields? "}"',
            'values ::= value ("," value)*',
            'number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [+-]? [0-9]+)?',
            f"text ::= {mark} ([^{first}] | [{first}] [^{first}{second}])* {mark}",
        )
    )


def _in_class(character: str) -> str:
    return f"\\{character}" if character in "\\]^-" else character
