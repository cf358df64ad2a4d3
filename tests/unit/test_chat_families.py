"""Families' own templates, as installed packages ship them: the text is transformers' own.

transformers ships a few within its sources. A folder with more (`*.jinja`) is named by
AIOS_TEST_TEMPLATES: such as `trl/chat_templates` of the package trl.
"""

import ast
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from aios_workers.llm.chat.template import ChatTemplate, TemplateRefusal

SPECIAL = {"bos_token": "<BOS>", "eos_token": "<EOS>"}
USER = {"role": "user", "content": " Weather?\n"}
SYSTEM = {"role": "system", "content": "Be kind."}
FUNCTION = {"name": "weather", "arguments": {"city": "Zürich <b>"}}
CALL = {"id": "abcdefghi", "type": "function", "function": FUNCTION}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": '"sun" & rain', "tool_call_id": "abcdefghi", "name": "weather"}
SAID = {"role": "assistant", "content": "<think>\nso\n</think>\n\nSunny."}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "<Its>"}}}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city", "parameters": PARAMETERS},
}
CHATS: list[tuple[list[Any], list[Any]]] = [
    ([USER], []),
    ([SYSTEM, USER, SAID, USER], []),
    ([SYSTEM, USER], [TOOL]),
    ([USER, CALLED, RESULT], [TOOL]),
    ([SYSTEM, USER, CALLED, RESULT, SAID, USER], [TOOL]),
]
_PACKAGED = ("llama4", "qwen2_audio", "smolvlm")


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
    folder = os.environ.get("AIOS_TEST_TEMPLATES")
    files = sorted(Path(folder).glob("*.jinja")) if folder else []
    return [*packaged(), *((each.name, each.read_text()) for each in files)]


def by_transformers(source: str, messages: list[Any], tools: list[Any], *, answers: bool) -> str:
    options: dict[str, Any] = {"add_generation_prompt": answers, **SPECIAL}
    rendered: Any = render_jinja_template(
        [messages], tools=tools or None, chat_template=source, **options
    )
    text: str = rendered[0][0]
    return text


@pytest.mark.parametrize("source", [pytest.param(text, id=name) for name, text in templates()])
def test_a_familys_template_gives_what_transformers_gives(source: str) -> None:
    template = ChatTemplate(source, SPECIAL, field="gguf", subject="it", clock=time.time)
    equal = 0
    for messages, tools in CHATS:
        for answers in (True, False):
            try:
                wanted = by_transformers(source, messages, tools, answers=answers)
            except (TemplateError, TypeError):
                with pytest.raises(TemplateRefusal):
                    template.render(messages, tools, answers=answers)
            else:
                assert template.render(messages, tools, answers=answers) == wanted
                equal += 1
    template.close()
    assert equal
