"""Whether finished answers are what was asked for: looked at once, before anybody has them."""

import json
from collections.abc import Iterator, Sequence
from functools import partial

from aios_broker.contract.errors import FormNotKept, InvalidSyscall
from aios_broker.contract.llm import JsonFormat, LlmChat
from aios_broker.contract.reply import ChatResult, Choice
from aios_workers.llm.core import Reader
from aios_workers.llm.tools import Toolbox, parameters_of
from aios_workers.llm.validation import Validators

MOST_TOLD = 4_000  # characters of an answer that is told in an error
_SLOWEST = 1 << 20  # as many characters: it is looked at in a thread
Claim = tuple[str, str, str]  # the field of a form, its JSON schema, the text that should have it


class FinishedAnswers:
    """Looks at the answers of one core."""

    def __init__(self) -> None:
        self._validators = Validators()
        self._reader = Reader()

    async def prepare(self, body: LlmChat) -> None:
        """Return if what the core answers can be looked at: of one that compiles no schema itself.

        Raises:
            InvalidSyscall: the schema is none.
        """
        if not isinstance(body.format, JsonFormat) or body.format.json_schema is None:
            return
        schema = _dumped(body.format.json_schema)
        try:
            await self._reader.read(_SLOWEST, lambda: self._validators.of(schema))
        except ValueError as error:
            raise InvalidSyscall(
                f"the JSON schema cannot be kept: {error}",
                field="body.format.json_schema",
                remedy="correct it",
            ) from error

    async def check(
        self, body: LlmChat, result: ChatResult, toolbox: Toolbox | None, *, holds_calls: bool
    ) -> None:
        """Return if each answer that was finished has its form.

        `holds_calls`: the arguments of calls too. A cut answer has none, and says that it was cut.

        Raises:
            FormNotKept: one has it not.
        """
        answers: Sequence[Choice | ChatResult] = result.choices or (result,)
        for answer in answers:
            for field, schema, text in _claims(body, answer, toolbox if holds_calls else None):
                judge = partial(self._validators.wrong, schema, text)
                why = await self._reader.read(_SLOWEST, judge)
                if why is not None:
                    raise _broken(field, why, text)

    async def close(self) -> None:
        """End the thread."""
        await self._reader.close()


def _claims(body: LlmChat, answer: Choice | ChatResult, toolbox: Toolbox | None) -> Iterator[Claim]:
    if answer.finish_reason == "stop" and isinstance(body.format, JsonFormat):
        schema = body.format.json_schema
        source = _dumped({"type": "object"} if schema is None else schema)
        yield "body.format.json_schema", source, answer.text
    if toolbox is None or toolbox.call_format.shape == "quoted":
        return  # that notation says nothing of what arguments may be
    numbers = {tool.name: number for number, tool in enumerate(body.tools)}
    for call in answer.tool_calls:
        number = numbers[call.name]
        schema = parameters_of(body.tools[number])
        yield f"body.tools[{number}].parameters", _dumped(schema), call.arguments


def _dumped(schema: object) -> str:
    return json.dumps(schema, ensure_ascii=False)


def _broken(field: str, why: str, text: str) -> FormNotKept:
    cut = "" if len(text) <= MOST_TOLD else "..."
    return FormNotKept(
        f"the answer breaks its form: {why}; it is {text[:MOST_TOLD]!r}{cut}",
        field=field,
        remedy="send it under a new id with another seed, or leave out the keyword",
    )
