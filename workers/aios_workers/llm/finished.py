"""Whether finished answers are what was asked for: looked at once, before anybody has them.

What may take long is looked at in a child with little of everything, of each tenant one at a time.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import msgspec

from aios_broker.bounded_work import BoundedWork
from aios_broker.contract.errors import CoreError, FormNotKept, InvalidSyscall
from aios_broker.contract.llm import JsonFormat, LlmChat
from aios_broker.contract.reply import ChatResult, Choice
from aios_broker.places import Holder, Shares
from aios_broker.process.bounded import Bounds, OutOfBounds, OutOfTime
from aios_workers.llm.core import Reader
from aios_workers.llm.tools import Toolbox, parameters_of
from aios_workers.llm.validation import Request, Validators, quick
from aios_workers.llm.verdicts import Verdicts

PROGRAM = "aios_workers.llm.validation"
BOUNDS = Bounds(cpu_s=1.0, memory_bytes=1 << 30, wall_s=20.0, nice=5)
AT_ONCE = Shares(places=2, of_tenant=1, of_agent=1)  # of one worker process
MOST_TOLD = 4_000  # characters of an answer that is told in an error
_LONG = 1 << 20  # as many characters: it is looked at in a thread
Claim = tuple[str, str, str]  # the field of a form, its JSON schema, the text that should have it


class FinishedAnswers:
    """Looks at the answers of one core."""

    def __init__(self) -> None:
        self._validators = Validators()
        self._reader = Reader()
        self._work = BoundedWork(PROGRAM, BOUNDS, AT_ONCE)
        self._verdicts = Verdicts(self._verdict)  # of schemas: what is wrong with each, or nothing

    async def prepare(self, body: LlmChat, holder: Holder, patience_s: float | None = None) -> None:
        """Return if the holder's answer can be looked at: of a core that compiles no schema itself.

        Raises:
            InvalidSyscall: the schema is none.
            FormPending: that is not known within `patience_s`; None: wait until it is.
            CoreError, ModuleError: it could not be found out.
        """
        if not isinstance(body.format, JsonFormat) or body.format.json_schema is None:
            return
        why = await self._verdicts.of(_dumped(body.format.json_schema), holder, patience_s)
        if why:
            raise InvalidSyscall(
                f"the JSON schema cannot be kept: {why}",
                field="body.format.json_schema",
                remedy="correct it",
            )

    async def _verdict(self, schema: str, holder: Holder, begin: Callable[[], None]) -> str:
        try:
            return await self._asked(Request(schema), holder, begin)
        except OutOfBounds:
            return "it is too large or too deep"

    async def check(
        self,
        body: LlmChat,
        result: ChatResult,
        toolbox: Toolbox | None,
        holder: Holder,
        *,
        holds_calls: bool,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """Return if each answer to a holder that was finished has its form.

        `holds_calls`: the arguments of calls too. A cut answer has none, and says that it was cut.
        `on_wait` is called before it waits for its tenant's turn, and for a child.

        Raises:
            FormNotKept: one has it not, or to find that out takes more than it may.
            CoreError, ModuleError: it could not be found out.
        """
        answers: Sequence[Choice | ChatResult] = result.choices or (result,)
        for answer in answers:
            for field, schema, text in _claims(body, answer, toolbox if holds_calls else None):
                if not quick(schema, text):
                    on_wait()
                why = await self._wrong(schema, text, field, holder)
                if why is not None:
                    raise _broken(field, why, text)

    async def _wrong(self, schema: str, text: str, field: str, holder: Holder) -> str | None:
        if quick(schema, text):
            return await self._reader.read(_LONG, partial(self._validators.wrong, schema, text))
        try:
            return await self._asked(Request(schema, text), holder) or None
        except OutOfBounds as error:
            raise FormNotKept(
                f"whether the answer has its form was not found out with {BOUNDS.cpu_s:g} s of a "
                "processor: it is not told",
                field=field,
                remedy="make the schema simpler: alternatives that refer to each other double "
                "with each level of the answer",
            ) from error

    async def _asked(
        self, request: Request, holder: Holder, begin: Callable[[], None] = lambda: None
    ) -> str:
        """Return what the child says."""
        try:
            said = await self._work.run(holder, msgspec.json.encode(request), begin)
        except OutOfTime as error:
            raise CoreError(
                f"a JSON schema could not be looked at within {BOUNDS.wall_s:g} s"
            ) from error
        return said.decode("utf-8", "replace")

    async def close(self) -> None:
        """End the thread, and what is being found out."""
        await self._verdicts.close()
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
