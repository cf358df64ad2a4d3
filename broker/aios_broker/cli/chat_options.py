"""The options of `aios submit` that say how an answer is to be made, as the contract names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

Fields = dict[str, object]


class JsonOrFile(click.ParamType[object]):
    """JSON on the command line, or `@` and the path of a file with it."""

    name = "json"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Return what the JSON says."""
        try:
            text = Path(value[1:]).read_bytes() if value.startswith("@") else value.encode()
            return msgspec.json.decode(text)
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            self.fail(f"{error}", param, ctx)


_OPTIONS = (
    click.option("--max-tokens", type=int, metavar="N", help="New tokens at most (256)."),
    click.option("--temperature", type=float, metavar="T", help="0 is greedy (0)."),
    click.option("--top-p", type=float, metavar="P", help="Of the probability; 1 is all (1)."),
    click.option("--seed", type=int, metavar="N", help="Of the sampling; else from the id."),
    click.option("--stop", multiple=True, metavar="TEXT", help="Ends before it; may be repeated."),
    click.option("--core", metavar="MODEL", help="Only on this core; else on any."),
    click.option("--n", "n", type=int, metavar="N", help="So many answers (1)."),
    click.option("--beam-width", type=int, metavar="W", help="Beam search; prints the best N."),
    click.option("--logprobs", type=int, metavar="K", help="Alternatives per token; with --json."),
    click.option("--schema", type=JsonOrFile(), metavar="JSON|@FILE",
                 help="The answer is JSON that this schema allows; {} is any object."),
    click.option("--regex", metavar="PATTERN", help="The answer matches it."),
    click.option("--grammar", metavar="LARK", help="The answer is a sentence of it."),
    click.option("--tools", type=JsonOrFile(), metavar="JSON|@FILE",
                 help='A list of {"name", "description", "parameters"}.'),
    click.option("--tool-choice", metavar="HOW", help="auto, none, required, or a tool's name."),
)  # fmt: skip
_NAMES = (
    "max_tokens", "temperature", "top_p", "seed", "stop", "core", "n", "beam_width", "logprobs",
    "schema", "regex", "grammar", "tools", "tool_choice",
)  # fmt: skip


def with_chat_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_chat_fields(given: Fields) -> Fields:
    """Take the options out of what a command was given; return the fields of the body."""
    fields = {name: given.pop(name) for name in _NAMES}
    forms = {
        "json": ("json_schema", fields.pop("schema")),
        "regex": ("pattern", fields.pop("regex")),
        "grammar": ("grammar", fields.pop("grammar")),
    }
    wanted = [
        {"type": kind, name: value} for kind, (name, value) in forms.items() if value is not None
    ]
    if len(wanted) > 1:
        raise click.UsageError("one of --schema, --regex and --grammar, not several")
    if wanted and wanted[0] == {"type": "json", "json_schema": {}}:
        wanted = [{"type": "json"}]
    fields["format"] = wanted[0] if wanted else None
    fields["stop"] = fields["stop"] or None
    return {name: value for name, value in fields.items() if value is not None}
