"""Renders one chat template, in a process of its own: `python -m aios_workers.llm.chat.renderer`.

A template comes with a model's file and is a program. Jinja's sandbox keeps it from attributes and
modules; that it may loop for ever, or fill the memory, only a process can be kept from that may be
ended. It reads a request per line from standard input and writes an answer per line:

    {"load": SOURCE, "special": {"bos_token": ...}}       -> {"names": [...]} or {"error": ...}
    {"messages": [...], "tools": [...], "now_s": ...,
     "answers": true: the start of an answer follows}     -> {"text": ...} or {"error": ...}

The names and filters are those that templates of the Hugging Face family expect.
"""

import datetime
import json
import resource
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_LIMIT_BYTES = 1 << 30
MAX_OUTPUT_CHARACTERS = 32 * 1024 * 1024
MAX_REASON_CHARACTERS = 400
_REFUSALS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError)
Answer = dict[str, Any]


class _Generation(Extension):
    """`{% generation %}`: marks for training what an assistant said; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012  as its base has it

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox; what it keeps a template from is an error at once, not when it is used."""

    def unsafe_undefined(self, obj: object, attribute: str) -> NoReturn:
        """Refuse an attribute."""
        kind = type(obj).__name__
        raise SecurityError(f"it reads the attribute {attribute!r} of a {kind}")


def environment() -> ImmutableSandboxedEnvironment:
    """Return what templates are compiled in."""
    made = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _refuse
    del made.globals["lipsum"]
    return made


def _to_json(
    value: object,
    ensure_ascii: bool = False,  # noqa: FBT001  templates call it by place
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class Renderer:
    """One template."""

    def __init__(self) -> None:
        self._environment = environment()
        self._template: jinja2.Template | None = None
        self._special: Mapping[str, str] = {}

    def load(self, request: Mapping[str, Any]) -> Answer:
        """Compile a template; return the names that it asks for."""
        source = request["load"]
        self._environment.globals["strftime_now"] = str  # for each rendering its own
        self._template = self._environment.from_string(source)
        self._special = request["special"]
        return {"names": sorted(meta.find_undeclared_variables(self._environment.parse(source)))}

    def render(self, request: Mapping[str, Any]) -> Answer:
        """Return the text of a conversation up to the start of the answer."""
        assert self._template is not None, "the first request loads a template"
        now = datetime.datetime.fromtimestamp(request["now_s"], datetime.UTC)
        self._environment.globals["strftime_now"] = now.strftime
        text = self._template.render(
            messages=request["messages"],
            tools=request["tools"] or None,
            documents=None,
            add_generation_prompt=request["answers"],
            **self._special,
        )
        if len(text) > MAX_OUTPUT_CHARACTERS:
            return {"error": f"it writes {len(text)} characters"}
        return {"text": text}


def answered(step: Callable[[Mapping[str, Any]], Answer], request: Mapping[str, Any]) -> Answer:
    """Take a step; what the template does wrong is an answer, too."""
    try:
        return step(request)
    except (*_REFUSALS, TypeError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        return {"error": words[:MAX_REASON_CHARACTERS]}


def main() -> int:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    renderer = Renderer()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answer = answered(renderer.load if "load" in request else renderer.render, request)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
