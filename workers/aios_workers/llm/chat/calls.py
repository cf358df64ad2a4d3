"""How the families of models write calls of tools: recognised, held to, read. Pure.

An answer with calls is a message (perhaps empty), what begins the calls, and then calls and
nothing else. A format says what stands around them; four shapes say what a call itself is.

What walks a JSON value (templates, encoders, the compiler of forms) calls itself for each level:
beyond a limit that all of them bear it is refused, not walked.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from aios_broker.contract.json_text import is_nested_deeper

MAX_DEPTH = 100  # llguidance reads 128; a tool's schema stands in one of its own


def is_too_deep(value: object) -> bool:
    """Whether a value has more than MAX_DEPTH levels of lists and objects."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [part for each in level for part in _parts(each)]
        if not level:
            return False
    return True


def _parts(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


MAX_CALLS = 16  # of one answer that may be a message, too

# object: {"name": ..., "arguments": {...}}. list: a JSON list of those. named: the name, a mark,
# and the arguments as JSON. quoted: the name, then {key:value} with strings in marks of their own.
Shape = Literal["object", "list", "named", "quoted"]


@dataclass(frozen=True, slots=True)
class CallFormat:
    """What stands around and between the calls of a family's answers."""

    name: str
    shape: Shape
    begin: str = ""  # before all calls
    call_begin: str = ""  # before each
    after_name: str = ""  # named: between name and arguments
    call_end: str = ""
    separator: str = ""
    end: str = ""  # behind all
    arguments: str = "arguments"  # the key of an object's arguments
    quote: str = ""  # quoted: around strings
    prelude: str = ""  # may stand at the very beginning of an answer that is calls

    @property
    def marker(self) -> str:
        """What begins the part of an answer that is calls; empty: such an answer has nothing else.

        Without one, an answer is calls where it begins with a brace.
        """
        return self.begin or self.call_begin

    @property
    def may_be_bare(self) -> bool:
        """Whether an answer that is one call, and nothing else, may lack the marks around it.

        Small models forget them.
        """
        return self.shape == "object" and bool(self.marker)

    def may_be_call(self, text: str) -> bool | None:
        """Whether an answer without a marker is calls, by how it begins; None: not clear yet."""
        begun = text.lstrip()
        if not begun or (self.prelude.startswith(begun) and begun != self.prelude):
            return None
        return begun.startswith(("{", self.prelude or "{"))

    @property
    def markers(self) -> tuple[str, ...]:
        """All that the model writes as tokens of its own, perhaps."""
        return (
            self.begin,
            self.call_begin,
            self.after_name,
            self.call_end,
            self.end,
            self.quote,
            self.prelude,
        )


_BAR = "\uff5c"  # which DeepSeek has for a bar
HERMES = CallFormat("hermes", "object", call_begin="<tool_call>", call_end="</tool_call>")
LLAMA3 = CallFormat(
    "llama3", "object", separator="; ", arguments="parameters", prelude="<|python_tag|>"
)
MISTRAL = CallFormat("mistral", "list", begin="[TOOL_CALLS]")
MISTRAL_NAMED = CallFormat("mistral-named", "named", call_begin="[TOOL_CALLS]", after_name="[ARGS]")
GRANITE = CallFormat("granite", "list", begin="<|tool_call|>")
DEEPSEEK = CallFormat(
    "deepseek",
    "named",
    begin=f"<{_BAR}tool▁calls▁begin{_BAR}>",
    call_begin=f"<{_BAR}tool▁call▁begin{_BAR}>function<{_BAR}tool▁sep{_BAR}>",
    after_name="\n```json\n",
    call_end=f"\n```<{_BAR}tool▁call▁end{_BAR}>",
    separator="\n",
    end=f"<{_BAR}tool▁calls▁end{_BAR}>",
)
DEEPSEEK_31 = CallFormat(
    "deepseek-3.1",
    "named",
    begin=f"<{_BAR}tool▁calls▁begin{_BAR}>",
    call_begin=f"<{_BAR}tool▁call▁begin{_BAR}>",
    after_name=f"<{_BAR}tool▁sep{_BAR}>",
    call_end=f"<{_BAR}tool▁call▁end{_BAR}>",
    end=f"<{_BAR}tool▁calls▁end{_BAR}>",
)
GEMMA = CallFormat(
    "gemma",
    "quoted",
    call_begin="<start_function_call>call:",
    call_end="<end_function_call>",
    quote="<escape>",
)
GEMMA_4 = CallFormat(
    "gemma-4", "quoted", call_begin="<|tool_call>call:", call_end="<tool_call|>", quote='<|"|>'
)
FORMATS = (
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_NAMED,
    GRANITE,
    DEEPSEEK,
    DEEPSEEK_31,
    GEMMA,
    GEMMA_4,
)

# What tells a format, in the text of a template; the first line that fits holds.
_SIGNS: tuple[tuple[CallFormat, re.Pattern[str]], ...] = (
    (MISTRAL_NAMED, re.compile(r"\[TOOL_CALLS\][\s\S]*\[ARGS\]")),
    (MISTRAL, re.compile(r"\[TOOL_CALLS\]")),
    (DEEPSEEK, re.compile(rf"<{_BAR}tool▁calls▁begin{_BAR}>[\s\S]*```json")),
    (DEEPSEEK_31, re.compile(rf"<{_BAR}tool▁calls▁begin{_BAR}>")),
    (GEMMA, re.compile(r"<start_function_call>")),
    (GEMMA_4, re.compile(r"<\|tool_call>")),
    (GRANITE, re.compile(r"<\|tool_call\|>")),
    (HERMES, re.compile(r"<tool_call>(?![\s\S]*<(function=|arg_key))")),
    (LLAMA3, re.compile(r'(?=[\s\S]*"parameters)(?=[\s\S]*<\|start_header_id\|>)')),
)


def format_of(template: str) -> CallFormat | None:
    """Return how the model of a chat template calls tools; None: in no way that is read here."""
    return next((each for each, sign in _SIGNS if sign.search(template)), None)


# The form.


@dataclass(frozen=True, slots=True)
class CallSchemas:
    """What may be called: JSON schemas as text, which say themselves how their JSON is written."""

    call: str  # of a whole call, as an object
    arguments: tuple[tuple[str, str], ...]  # of each tool's arguments, by its name


def calls_grammar(
    call_format: CallFormat, schemas: CallSchemas, thought: str = "", begin: str = ""
) -> str:
    """Return the grammar of a message, or of a message and calls.

    `thought`: a term, made of THOUGHT, for what comes first and is no part of them; `begin`: what
    it begins with, where it may be missing. Its line is `thought_line`.
    """
    prelude = "PRELUDE? " if call_format.prelude else ""
    opening = "OPENING " if call_format.marker else prelude
    bare = "| body" if call_format.may_be_bare else ""
    lines = [
        f"start: {thought}(MESSAGE | {opening}{_calls(call_format)}{bare})",
        *_message_lines(call_format, begin[:1]),
        *_body_lines(call_format, schemas),
    ]
    return "\n".join(line.rstrip() for line in lines)


def form_or_calls_grammar(call_format: CallFormat, schemas: CallSchemas, form: str) -> str:
    """Return the grammar of JSON of a schema, or of calls with nothing before them.

    A call has its marks: without them it could not be told from an answer.
    """
    prelude = "PRELUDE? " if call_format.prelude else ""
    opening = _literal(call_format.marker) or prelude
    lines = [
        f"start: answer | {opening}{_calls(call_format)}",
        f"answer: %json {form}",
        *_prelude_lines(call_format),
        *_body_lines(call_format, schemas),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _calls(call_format: CallFormat) -> str:
    """Return the term of all calls of an answer, behind what opens them."""
    end = _literal(call_format.call_end)
    one = f"{_literal(call_format.call_begin)}body {end}"
    first = one if call_format.begin or not call_format.marker else f"body {end}"
    more = f"({_literal(call_format.separator)}{one}){{0,{MAX_CALLS - 1}}} "
    if call_format.shape == "list":
        more = ""
    return f"{first}{more}{_literal(call_format.end)}"


def thought_line(end: str, begin: str = "") -> str:
    """Return the line of a THOUGHT: what ends with this tag, and begins with that."""
    pattern = f"{_escaped(begin)}{unmarked_pattern(end)}{_escaped(end)}"
    return f"THOUGHT: /{pattern}/"


def _message_lines(call_format: CallFormat, not_first: str) -> list[str]:
    marker = call_format.marker
    if marker:
        of = _unbraced_pattern if call_format.may_be_bare else unmarked_pattern
        plain = of(marker)
        return [f"MESSAGE: /{plain}/", f"OPENING: /{plain}{_escaped(marker)}/"]
    message = rf"MESSAGE: /[ \n\r\t]*([^{{{re.escape(not_first)} \n\r\t](.|\n)*)?/"
    return [message, *_prelude_lines(call_format)]


def _prelude_lines(call_format: CallFormat) -> list[str]:
    return [f"PRELUDE: {_literal(call_format.prelude)}"] if call_format.prelude else []


def _body_lines(call_format: CallFormat, schemas: CallSchemas) -> list[str]:
    match call_format.shape:
        case "object":
            return [f"body: %json {schemas.call}"]
        case "list":
            more = f'(", " call){{0,{MAX_CALLS - 1}}}'
            return [f'body: "[" call {more} "]"', f"call: %json {schemas.call}"]
        case "named":
            lines = ["body: " + " | ".join(f"tool{n}" for n in range(len(schemas.arguments)))]
            for number, (name, schema) in enumerate(schemas.arguments):
                named = _literal(name + call_format.after_name)
                lines.append(f"tool{number}: {named}arguments{number}")
                lines.append(f"arguments{number}: %json {schema}")
            return lines
        case "quoted":
            names = " | ".join(_literal(name + "{") for name, _ in schemas.arguments)
            quote = call_format.quote
            text = f"{_escaped(quote)}{unmarked_pattern(quote)}{_escaped(quote)}"
            return [
                f'body: ({names}) fields? "}}"',
                'fields: field ("," field)*',
                'field: KEY ":" value',
                'value: TEXT | NUMBER | "true" | "false" | "null" | "[" values? "]" '
                '| "{" fields? "}"',
                'values: value ("," value)*',
                "KEY: /[A-Za-z0-9_.-]+/",
                "NUMBER: /-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?/",
                f"TEXT: /{text}/",
            ]


def _literal(text: str) -> str:
    return f"{json.dumps(text, ensure_ascii=False)} " if text else ""


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", r"\/")


def unmarked_pattern(marker: str) -> str:
    """Return the regular expression of all texts without the marker in them.

    The marker's first character stands nowhere else in it: whatever does not go on as the marker
    does is either the beginning of another try or an end of all tries.
    """
    first, begun, given_up = _tries(marker)
    pattern = f"([^{first}]|({begun})*({given_up}))*({begun})*"
    return pattern.replace("/", r"\/")


def _unbraced_pattern(marker: str) -> str:
    """Return the one of those that do not begin with a brace, blanks before it or not."""
    first, begun, given_up = _tries(marker)
    tried = f"({begun})*({given_up})"
    rest = f"([^{first}]|{tried})*({begun})*"
    pattern = f"[ \\n\\r\\t]*(([^{first}{{ \\n\\r\\t]|{tried}){rest}|({begun})+)?"
    return pattern.replace("/", r"\/")


def _tries(marker: str) -> tuple[str, str, str]:
    """Return what a marker begins with, its beginnings, and what gives a beginning up."""
    first = re.escape(marker[0])
    begun = "|".join(re.escape(marker[:size]) for size in range(1, len(marker)))
    given_up = "|".join(
        f"{re.escape(marker[:size])}[^{first}{re.escape(marker[size])}]"
        for size in range(1, len(marker))
    )
    return first, begun, given_up


# Reading.


@dataclass(frozen=True, slots=True)
class ReadCall:
    """A call as it stands in an answer. `arguments` is the text of a JSON object."""

    name: str
    arguments: str


_any_json = json.JSONDecoder()
_BLANKS = re.compile(r"\s*")
_BETWEEN = re.compile(r"[\s;,]*")
_NAME = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*")
_CALL_ID = re.compile(r"\[CALL_ID\][A-Za-z0-9]*\s*")
_SCALAR = re.compile(r"-?[0-9][0-9.eE+-]*|true|false|null")
_KEY = re.compile(r"\s*([^:{}\[\],\s]+)\s*:\s*")


def parted(text: str, call_format: CallFormat) -> tuple[str, list[ReadCall]]:
    """Return what stands before the calls of an answer, and the calls that are whole.

    Marks in the strings of an argument are text.
    """
    if not call_format.marker:
        return _bare(text, call_format)
    at = text.find(call_format.marker)
    if at < 0:
        bare = read_object(text) if call_format.may_be_bare else None
        return (text, []) if bare is None else ("", [bare])
    message = text[:at]
    if call_format.shape == "list":
        return message, _listed(text, at + len(call_format.marker))
    calls: list[ReadCall] = []
    begin = call_format.call_begin
    at = text.find(begin, at)
    while at >= 0:
        found, read_to = _one(text, at + len(begin), call_format)
        closed = text.find(call_format.call_end, read_to)
        at = text.find(begin, read_to)
        if found is not None and closed >= 0 and not 0 <= at < closed:
            calls.append(found)
    return message, calls


def formed_or_calls(text: str, call_format: CallFormat) -> tuple[str, list[ReadCall]]:
    """Return the same of an answer that is JSON of a form, or calls: marks in the JSON are text."""
    if not call_format.marker:
        return parted(text, call_format)
    _, end = _value_span(text, 0)
    if not text[end:].lstrip().startswith(call_format.marker):
        return text, []
    message, calls = parted(text[end:], call_format)
    return text[:end] + message, calls


def _one(text: str, start: int, call_format: CallFormat) -> tuple[ReadCall | None, int]:
    """Return the call that begins here, and where it ends; None: there is none to be read."""
    if call_format.shape == "object":
        start, end = _value_span(text, start)
        return read_object(text[start:end]), end
    name = _NAME.match(text, start)
    if name is None:
        return None, start
    if call_format.shape == "quoted":
        try:
            value, end = _quoted_value(text, name.end(), call_format.quote, MAX_DEPTH)
        except ValueError:
            return None, start
        return ReadCall(name.group(1), json.dumps(value, ensure_ascii=False)), end
    at = name.end()
    identity = _CALL_ID.match(text, at)
    at = identity.end() if identity else at
    mark = call_format.after_name.strip()
    at = at + len(mark) if text.startswith(mark, at) else at
    at, end = _value_span(text, at)
    arguments = text[at:end]
    return (ReadCall(name.group(1), arguments) if arguments.startswith("{") else None), end


def _listed(text: str, start: int) -> list[ReadCall]:
    start, end = _value_span(text, start)
    if text[start : start + 1] == "{":
        found = read_object(text[start:end])
        return [] if found is None else [found]
    try:
        bodies = msgspec.json.decode(text[start:end], type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeEncodeError):
        return []
    return [found for body in bodies if (found := read_object(bytes(body).decode())) is not None]


def _bare(text: str, call_format: CallFormat) -> tuple[str, list[ReadCall]]:
    """Read an answer that is calls and nothing else; what stands behind the last counts not."""
    body = text.strip().removeprefix(call_format.prelude).lstrip()
    calls: list[ReadCall] = []
    at = 0
    while at < len(body):
        start, end = _value_span(body, at)
        found = read_object(body[start:end])
        if found is None:
            break
        calls.append(found)
        between = _BETWEEN.match(body, end)
        at = between.end() if between else end
    return ("", calls) if calls else (text, [])


def read_object(body: str) -> ReadCall | None:
    """Read one call that is a JSON object."""
    if is_nested_deeper(body, MAX_DEPTH):
        return None
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        name = msgspec.json.decode(fields.get("name", b"null"), type=str)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
    if not fields.keys() <= {"name", "arguments", "parameters", "id", "type"}:
        return None
    arguments = bytes(fields.get("arguments", fields.get("parameters", b"null"))).decode()
    return ReadCall(name, arguments) if arguments.startswith("{") else None


def _value_span(text: str, start: int) -> tuple[int, int]:
    """Return where the JSON value begins and ends that comes here; an unreadable one is empty."""
    blanks = _BLANKS.match(text, start)
    start = blanks.end() if blanks else start
    try:
        end = _any_json.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return start, start
    return start, start if is_nested_deeper(text[start:end], MAX_DEPTH) else end


Quoted = str | int | float | bool | None | list["Quoted"] | dict[str, "Quoted"]


def _quoted_value(text: str, at: int, quote: str, depth: int) -> tuple[Quoted, int]:
    """Read a value whose strings stand between marks, and where it ends.

    Raises:
        ValueError: there is none.
    """
    if depth == 0:
        raise ValueError("too deep")
    if text.startswith(quote, at):
        end = text.index(quote, at + len(quote))
        return text[at + len(quote) : end], end + len(quote)
    if text.startswith(("{", "["), at):
        return _quoted_parts(text, at, quote, depth)
    scalar = _SCALAR.match(text, at)
    if scalar is None:
        raise ValueError(f"no value at {at}")
    value: Quoted = json.loads(scalar.group())
    return value, scalar.end()


def _quoted_parts(text: str, at: int, quote: str, depth: int) -> tuple[Quoted, int]:
    is_object = text[at] == "{"
    close = "}" if is_object else "]"
    fields: dict[str, Quoted] = {}
    values: list[Quoted] = []
    at += 1
    while not text.startswith(close, at):
        if is_object:
            key = _KEY.match(text, at)
            if key is None:
                raise ValueError(f"no key at {at}")
            fields[key.group(1)], at = _quoted_value(text, key.end(), quote, depth - 1)
        else:
            value, at = _quoted_value(text, at, quote, depth - 1)
            values.append(value)
        if text.startswith(",", at):
            at += 1
        elif not text.startswith(close, at):
            raise ValueError(f"neither the next value nor an end at {at}")
    return (fields if is_object else values), at + 1
