"""Conversations as a chat template renders them here and in transformers."""

import time
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


def by_transformers(source: str, messages: list[Any], tools: list[Any], *, answers: bool) -> str:
    options: dict[str, Any] = {"add_generation_prompt": answers, **SPECIAL}
    rendered: Any = render_jinja_template(
        [messages], tools=tools or None, chat_template=source, **options
    )
    text: str = rendered[0][0]
    return text


def rendered_alike(source: str) -> int:
    """Check that a template gives what transformers gives, and refuses what that refuses.

    Returns how many renderings both gave.
    """
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
    return equal
