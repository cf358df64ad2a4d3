"""Families' templates: what is rendered is what transformers renders.

Those in `tests/data/chat_templates` speak as their families do, with what the templates of each are
known to use of Jinja. transformers ships a few within its sources. Those that the package trl ships
are compared by `tests/integration/test_shipped_templates.py`.
"""

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from aios_workers.llm.chat.calls import (
    DEEPSEEK,
    GEMMA,
    GRANITE,
    HERMES,
    LLAMA3,
    MISTRAL,
    CallFormat,
)
from aios_workers.llm.chat.markers import Markers
from aios_workers.llm.chat.prompt import PromptWriter, Speech
from aios_workers.llm.chat.template import ChatTemplate
from tests.chat_renderings import SPECIAL, rendered_alike

_PACKAGED = ("llama4", "qwen2_audio", "smolvlm")
_WRITTEN = Path(__file__).parents[1] / "data" / "chat_templates"


def packaged() -> Iterator[tuple[str, str]]:
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    for name in _PACKAGED:
        file = Path(spec.origin).parent / "models" / name / f"processing_{name}.py"
        for node in ast.walk(ast.parse(file.read_text())):
            value = node.value if isinstance(node, ast.Constant) else None
            if isinstance(value, str) and "{% for" in value and "message" in value:
                yield name, value


def templates() -> list[tuple[str, str]]:
    files = sorted(_WRITTEN.glob("*.jinja"))
    return [*packaged(), *((each.name, each.read_text()) for each in files)]


@pytest.mark.parametrize("source", [pytest.param(text, id=name) for name, text in templates()])
def test_a_familys_template_gives_what_transformers_gives(source: str) -> None:
    assert rendered_alike(source)


# How each family speaks: its calls, what opens its reasoning, and what ends its turns.
SPOKEN: dict[str, tuple[CallFormat | None, str | None, str | None]] = {
    "command": (None, "<|START_THINKING|>", "<|END_RESPONSE|>"),
    "deepseek": (DEEPSEEK, "<think>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    "gemma": (GEMMA, None, "<end_of_turn>"),
    "granite": (GRANITE, None, "<|end_of_text|>"),
    "harmony": (None, "<|channel|>analysis<|message|>", "<|return|>"),
    "llama3": (LLAMA3, None, "<|eot_id|>"),
    "mistral": (MISTRAL, None, "<EOS>"),
    "phi": (GRANITE, None, "<|end|>"),
    "qwen": (HERMES, "<think>", "<|im_end|>"),
}


def test_at_least_eight_families_are_compared() -> None:
    assert {each.stem for each in _WRITTEN.glob("*.jinja")} == SPOKEN.keys()
    assert len(SPOKEN) >= 8


@pytest.mark.parametrize("family", SPOKEN)
def test_how_a_family_speaks_is_told_by_its_template(family: str) -> None:
    source = (_WRITTEN / f"{family}.jinja").read_text()
    call_format, thought, turn_end = SPOKEN[family]
    speech = Speech.of(source)
    assert speech.call_format is call_format
    assert (speech.reasoning.begin if speech.reasoning else None) == thought
    special = ["<BOS>", "<EOS>", *re.findall(r"<[^<>'\" ]+>", source)]
    ids = {text: number for number, text in enumerate(dict.fromkeys(special))}

    def encode(text: str) -> list[int]:
        return [len(ids) + ord(character) for character in text]

    template = ChatTemplate(source, SPECIAL, field="gguf", subject=family)
    writer = PromptWriter(template, Markers(ids), encode, encode)
    ends = writer.turn_ends
    writer.close()
    assert ends == ({ids[turn_end]} if turn_end is not None else set())
