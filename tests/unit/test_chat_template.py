"""The renderer of chat templates: what it keeps a template from, and what it says of it."""

import pytest

from aios_broker.contract.errors import InvalidConfig, InvalidSyscall
from aios_broker.contract.llm import Message, Tool, ToolCall
from aios_workers.llm.chat import template as template_module
from aios_workers.llm.chat.markers import Markers
from aios_workers.llm.chat.prompt import PLAIN, PromptWriter
from aios_workers.llm.chat.template import ChatTemplate, TemplateRefusal

USER = Message("user", "Hello")
SPECIAL = {"<|im_start|>": -1, "<|im_end|>": -2, "<s>": -3, "[X]": -4}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}"
    "{% if m.role not in ('user', 'assistant') %}{{ raise_exception('no ' + m.role) }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "[{{ m.role }}:{{ m.content }}]{% endfor %}"
)


def made(source: str, **special: str) -> ChatTemplate:
    return ChatTemplate(source, special, field="gguf", subject="m.gguf", clock=lambda: 0.0)


def prompter(source: str) -> PromptWriter:
    """Return one whose ids are the characters, beside those of the special tokens."""
    markers = Markers(SPECIAL)

    def encode(text: str) -> tuple[int, ...]:
        ids: list[int] = []
        at = 0
        for marker in markers.pattern.finditer(text):
            ids += [*map(ord, text[at : marker.start()]), SPECIAL[marker.group()]]
            at = marker.end()
        return (*ids, *map(ord, text[at:]))

    return PromptWriter(made(source), markers, encode, lambda text: tuple(map(ord, text)))


def shown(ids: tuple[int, ...]) -> str:
    names = {token: text for text, token in SPECIAL.items()}
    return "".join(f"({names[each]})" if each < 0 else chr(each) for each in ids)


def test_templates_have_what_they_expect() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{% if m.skip %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{{ strftime_now('%Y-%m-%d') }}{{ {'a': 'ü'} | tojson }}{{ tools is none }}"
    )
    text = made(source, bos_token="<s>").render([{"skip": True}, {"content": "é"}])

    assert text == '<s>é1970-01-01{"a": "ü"}True'


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ messages[0] }",
        "{% include 'other' %}{% endinclude %}",
        "{{ 1 }}" * 200_000,
    ],
)
def test_what_is_no_template_is_refused_by_name(source: str) -> None:
    with pytest.raises(InvalidConfig, match=r"m\.gguf") as caught:
        made(source)

    assert caught.value.field == "gguf"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("{{ messages.__class__.__mro__ }}", "__class__"),
        ("{% if ''.__class__ %}{% endif %}", "__class__"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ messages.nothing.at_all }}", "nothing"),
        ("{{ 1 / 0 }}", "division"),
        ("{% include 'a file' %}", "loader"),
        ("{{ lipsum() }}", "lipsum"),
        ("{{ 'x' * 10 ** 10 }}", "MemoryError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_what_a_template_may_not_is_its_refusal(source: str, words: str) -> None:
    with pytest.raises(TemplateRefusal, match=words):
        made(source).render([{"role": "user", "content": "Hello"}])


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ range(99999) | sort | length }}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_ended(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_module, "RENDER_LIMIT_S", 0.5)
    looping = made(source)
    with pytest.raises(InvalidConfig, match="did not come to an end"):
        looping.render([])
    with pytest.raises(InvalidConfig, match="did not come to an end"):  # by a new process
        looping.render([])


# From a conversation to its ids.


def test_only_the_templates_own_markers_are_special() -> None:
    ids = prompter(CHATML).ids([Message("user", "  a<|im_end|>[X]b ")], ())

    assert shown(ids) == (
        "(<|im_start|>)user\na<|im_end|>[X]b(<|im_end|>)\n(<|im_start|>)assistant\n"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("<|im_", "end|>"),
        ("<|im_ ", "end|>"),
        ("<", "s>"),
        ("<|im_<|im_end|>", "end|>"),
        ("<<s><s>", ">"),
        ("\ue000<s>", "\ue001"),
    ],
)
def test_what_stands_side_by_side_makes_no_marker(first: str, second: str) -> None:
    source = "<s>{% for m in messages %}{{ m.content | trim }}{% endfor %}"
    ids = prompter(source).ids([Message("user", first), Message("assistant", second)], ())

    assert shown(ids) == f"(<s>){first.strip()}{second}"


def test_tools_calls_and_results_are_plain_text_too() -> None:
    source = (
        "{% for t in tools %}{{ t | tojson }}{% endfor %}{% for m in messages %}"
        "{{ m.content }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}"
        "{% endfor %}"
    )
    end = "<|im_end|>"
    ids = prompter(source).ids(
        [
            Message("user", "Hi"),
            Message("assistant", "", (ToolCall("c", "look", f'{{"{end}": "{end}"}}'),)),
            Message("tool", end, tool_call_id="c"),
        ],
        [Tool("look", end, {"type": "object", "properties": {end: {"const": end}}})],
    )

    assert "(" not in shown(ids)
    assert shown(ids).count(end) == 6


def test_a_long_text_full_of_markers_is_hidden_in_one_pass() -> None:
    values, hidden = Markers(SPECIAL).hide("<|im_end|>" * 200_000)

    assert Markers(SPECIAL).pattern.search(values[0]) is None
    assert hidden.shown(values[0]) == "<|im_end|>" * 200_000


def test_what_a_template_does_not_know_is_said_in_what_it_does() -> None:
    talk = [
        Message("system", "Be kind."),
        USER,
        Message("user", "You there?"),
        Message("assistant", "Yes."),
        Message("tool", "2"),
    ]

    assert shown(prompter(ALTERNATING).ids(talk, ())) == (
        "[user:Be kind.\n\nHello\n\nYou there?][assistant:Yes.][user:2]"
    )


def test_a_refusal_has_the_templates_own_words() -> None:
    with pytest.raises(InvalidSyscall, match="not today") as caught:
        prompter("{{ raise_exception('not today') }}").ids([USER], ())

    assert caught.value.field == "body.messages"


def test_arguments_are_text_where_the_template_puts_texts_together() -> None:
    source = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}"
        "{{ '<' + c.function.arguments + '>' }}{% endfor %}{% endfor %}"
    )
    ids = prompter(source).ids(
        [USER, Message("assistant", "", (ToolCall("c", "f", '{"n":1}'),))], ()
    )

    assert shown(ids) == 'Hello<{"n":1}>'


def test_ids_of_calls_are_as_long_as_the_template_wants_them() -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
        "{{ raise_exception('nine!') }}{% endif %}{{ c.id }},{% endfor %}"
        "{{ m.tool_call_id }}{{ m.content }}{% endfor %}"
    )
    call = ToolCall("call_0123456789abcdef", "f", "{}")
    talk = [Message("assistant", "", (call,)), Message("tool", "", tool_call_id=call.id)]
    called, answered = shown(prompter(source).ids(talk, ())).split(",")

    assert called == answered
    assert len(called) == 9
    assert called.isalnum()


@pytest.mark.parametrize("content", ["The cap", "The cap ", "The <|im_end|>", ""])
def test_an_answer_that_was_begun_is_continued(content: str) -> None:
    ids = prompter(CHATML).ids([USER, Message("assistant", content)], (), continues=True)

    assert shown(ids) == (
        f"(<|im_start|>)user\nHello(<|im_end|>)\n(<|im_start|>)assistant\n{content.rstrip()}"
    )


def test_a_model_without_a_template_reads_lines() -> None:
    assert shown(prompter(PLAIN).ids([Message("system", "S"), USER], ())) == (
        "system: S\nuser: Hello\nassistant:"
    )
