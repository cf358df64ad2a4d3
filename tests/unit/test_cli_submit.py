"""`aios submit`: from the command line to a syscall."""

import re
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from aios_broker.contract.llm import (
    GrammarFormat,
    JsonFormat,
    LlmBody,
    LlmChat,
    LlmEmbed,
    RegexFormat,
    Tool,
)
from aios_broker.contract.syscall import ToolEcho
from aios_cli.submit import CHAT_OPTIONS, TAKEN_OTHERWISE, Options, syscall_of, take_chat_fields
from tests.chat_fields import NUMBERS

REST = {
    "text": "Hello",
    "tool": None,
    "attach": None,
    "agent": "cli",
    "program": "main",
    "embed": False,
    "nice": None,
    "deadline_s": None,
    "key": None,
    "stream": True,
    "detach": False,
    "as_json": False,
}


def body(*arguments: str, **rest: object) -> LlmBody | ToolEcho:
    """Return the body that a command line makes."""
    made: list[LlmBody | ToolEcho] = []

    @click.command(params=list(CHAT_OPTIONS))
    def command(**given: object) -> None:
        chat = take_chat_fields(given)
        options = msgspec.convert({**REST, **rest, "chat": chat}, Options)
        built = syscall_of(options).body
        assert isinstance(built, LlmBody | ToolEcho)
        made.append(built)

    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    if not made:
        raise click.UsageError(result.output)
    return made[0]


def chat(*arguments: str, **rest: object) -> LlmChat:
    found = body(*arguments, **rest)
    assert isinstance(found, LlmChat)
    return found


def test_what_is_left_out_has_the_default_of_the_contract() -> None:
    found = chat()

    assert found == LlmChat(found.messages, stream=True)


def test_every_option_arrives_in_the_body() -> None:
    found = chat(
        "--n",
        "3",
        "--beam-width",
        "4",
        "--logprobs",
        "2",
        "--top-p",
        "0.5",
        "--stop",
        "a",
        "--stop",
        "b",
        "--tool-choice",
        "none",
    )

    assert (found.n, found.beam_width, found.logprobs, found.top_p) == (3, 4, 2, 0.5)
    assert (found.stop, found.tool_choice) == (("a", "b"), "none")


def test_every_field_of_a_chat_has_an_option() -> None:
    options = {option.name for option in CHAT_OPTIONS}

    fields = set(LlmChat.__struct_fields__) - TAKEN_OTHERWISE
    assert options == fields | {"schema", "regex", "grammar"}


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_arrives_and_its_range_is_shown(name: str) -> None:
    flag, most = f"--{name.replace('_', '-')}", NUMBERS[name].le
    page = CliRunner().invoke(click.Command("chat", params=list(CHAT_OPTIONS)), ["--help"])

    assert getattr(chat(flag, f"{most}"), name) == most
    shown = " ".join(page.output.split())
    assert re.search(rf"{flag} [NX] [^\[]+\[(over )?-?[0-9]+ to [0-9^ -]+", shown), shown


def test_nought_is_something_said() -> None:
    found = chat("--seed", "0", "--logprobs", "0")

    assert (found.seed, found.logprobs) == (0, 0)


def test_what_is_no_number_arrives_too() -> None:
    found = chat(
        "--return-ids",
        "--logit-bias",
        '{"7": -3}',
        "--overflow",
        "compact",
        "--context",
        "notes",
        "--lora",
        "poet",
        "--core",
        "tiny",
    )

    assert (found.return_ids, found.logit_bias, found.overflow) == (True, {7: -3.0}, "compact")
    assert (found.context, found.lora, found.core) == ("notes", "poet", "tiny")


@pytest.mark.parametrize(
    ("arguments", "form"),
    [
        (("--schema", '{"type": "integer"}'), JsonFormat({"type": "integer"})),
        (("--schema", "{}"), JsonFormat()),
        (("--regex", "a+"), RegexFormat("a+")),
        (("--grammar", 'start: "a"'), GrammarFormat('start: "a"')),
    ],
)
def test_forms(arguments: tuple[str, ...], form: object) -> None:
    assert chat(*arguments).format == form


def test_json_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text('[{"name": "now", "description": "The time."}]')

    assert chat("--tools", f"@{path}").tools == (Tool("now", "The time."),)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--schema", "{"),
        ("--schema", "@/nowhere.json"),
        ("--schema", "{}", "--regex", "a"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        chat(*arguments)


@pytest.mark.parametrize(
    ("arguments", "streams"),
    [
        ((), True),
        (("--schema", "{}"), True),
        (("--n", "2"), False),
        (("--beam-width", "2"), False),
        (("--tools", "[]"), False),
    ],
)
def test_only_one_certain_answer_is_printed_as_it_comes(
    arguments: tuple[str, ...], *, streams: bool
) -> None:
    assert chat(*arguments).stream is streams
    assert chat(*arguments, as_json=True).stream is False


def test_texts_are_embedded_and_tools_called() -> None:
    assert body("--core", "tiny", embed=True) == LlmEmbed(("Hello",), "tiny")
    assert body(tool="echo") == ToolEcho("Hello")
