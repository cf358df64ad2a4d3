"""Conversations on a core: counted, and compacted where they do not fit.

Compacting replaces the oldest turns by a summary that the core writes. What stays as it is: the
system messages at the beginning, and as many of the last turns as fit. What is between them is
read by the core in pieces, each with the summary of those before it.
"""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from aios_broker.contract.errors import ContextTooLong, CoreError
from aios_broker.contract.llm import LlmChat, Message, Tool
from aios_workers.llm.core import Core, GenerationRequest, Reader, Sampling, characters_of
from aios_workers.llm.tools import prompt_ids, toolbox_of
from aios_workers.runtime.runs import Run

SUMMARY_TOKENS = 256  # of a compaction, at most; and at most an eighth of the context
MAX_SUMMARIES = 64  # generations of one compaction; beyond, the conversation is refused
FRAME = "Summary of the earlier conversation:\n"
TASK = (
    "Summarise the conversation below for somebody who has to go on with it. Keep names, numbers, "
    "decisions and open questions. Write plain sentences and nothing else."
)

Render = Callable[[Sequence[Message]], Sequence[int]]  # a conversation as prompt ids
Count = Callable[[Sequence[Message]], int]  # its tokens


@dataclass(frozen=True, slots=True)
class Split:
    """A conversation in three parts: what stays, what is summarised, what stays."""

    head: tuple[Message, ...]
    old: tuple[Message, ...]
    tail: tuple[Message, ...]


def counter(core: Core, render: Render | None = None, *, bounded: bool = False) -> Count:
    """Return how many tokens a conversation has on a core; `render`: else the core's own.

    Exact where it fits the core's context. Beyond, each message is counted alone, with its frame,
    and a message that does not fit even so in pieces: an estimate from above. `bounded`: for
    comparisons, what is too long counts one more than the context holds, and is not read.
    """

    def whole(messages: Sequence[Message]) -> int:
        return core.info.tokens_of((render or core.render)(messages)) if messages else 0

    def alone(message: Message) -> int:
        try:
            return whole((message,))
        except ContextTooLong:
            role, content = message.role, message.content
            if len(content) < 2:  # its calls alone are too long
                return core.info.context_tokens + 1
            half = len(content) // 2
            return alone(Message(role, content[:half])) + alone(Message(role, content[half:]))

    def count(messages: Sequence[Message]) -> int:
        try:
            return whole(messages)
        except ContextTooLong:
            too_many = core.info.context_tokens + 1
            return too_many if bounded else max(too_many, sum(map(alone, messages)))

    return count


def prompt_tokens_of(core: Core, messages: Sequence[Message], tools: Sequence[Tool]) -> int:
    """Return how many tokens a chat of these messages and tools has for a prompt.

    Exact where it fits the core's context; beyond, each message is counted alone, and the tools.
    """
    box = toolbox_of(LlmChat(messages, tools=tools), core.info.capabilities)
    try:
        return core.info.tokens_of(prompt_ids(core, messages, box))
    except ContextTooLong:
        count = counter(core)
        shown = counter(core, lambda some: prompt_ids(core, some, box))
        return count(messages) + (shown((Message("user", ""),)) if box is not None else 0)


def split(messages: Sequence[Message], keep_last: int) -> Split:
    """Return the parts of a conversation of which the last messages stay.

    A tool's answer is never parted from the call that it answers: the tail begins earlier then.
    """
    first = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    start = max(first, len(messages) - keep_last)
    while start > first and start < len(messages) and messages[start].role == "tool":
        start -= 1
    return Split(tuple(messages[:first]), tuple(messages[first:start]), tuple(messages[start:]))


def fitting_split(messages: Sequence[Message], count: Count, room_tokens: int) -> Split | None:
    """Return the split with the longest tail that fits `room_tokens` together with the head.

    None: not even the last message does.
    """

    def fits(keep_last: int) -> bool:
        parts = split(messages, keep_last)
        return count((*parts.head, *parts.tail)) <= room_tokens

    keep_last = _longest(len(messages), fits)
    return split(messages, keep_last) if keep_last else None


def as_message(summary: str) -> Message:
    """Return the message that stands for what was summarised."""
    return Message("system", FRAME + summary)


class Summariser:
    """Writes summaries on a core. Charged to the run, never suspended: they are short."""

    def __init__(self, core: Core, reader: Reader) -> None:
        self._core = core
        self._reader = reader
        self._count = counter(core, bounded=True)

    async def compact(
        self, run: Run, messages: Sequence[Message], max_tokens: int, count: Count
    ) -> tuple[Message, ...]:
        """Return a conversation that leaves room for `max_tokens` of answer.

        One that does so already is returned as it is. `count` counts what will be rendered.

        Raises:
            ContextTooLong: not even the last message fits, or the rest is too much to summarise.
            CoreError: the core failed.
        """
        parts = await self.split_for(messages, max_tokens, count)
        if not parts.old:
            return tuple(messages)
        summary = await self.summarise(run, parts.old, self._summary_tokens)
        return (*parts.head, as_message(summary), *parts.tail)

    async def split_for(self, messages: Sequence[Message], max_tokens: int, count: Count) -> Split:
        """Return what of a conversation has to be summarised; nothing where all of it fits.

        Raises:
            ContextTooLong: what must stay does not fit.
        """
        return await self._reader.read(
            characters_of(messages), lambda: self._split(messages, max_tokens, count)
        )

    def _split(self, messages: Sequence[Message], max_tokens: int, count: Count) -> Split:
        limit = self._core.info.context_tokens
        if count(messages) + max_tokens <= limit:
            return Split((), (), tuple(messages))
        room = limit - max_tokens - self._summary_tokens - self._count((as_message(""),))
        parts = fitting_split(messages, count, room) if room > 0 else None
        if parts is None or not parts.old:
            raise ContextTooLong(
                f"the conversation has at least {count(messages)} tokens and the answer may have "
                f"{max_tokens}; the context of core {self._core.info.name!r} holds {limit} "
                f"together, and its system messages and last message leave nothing to compact",
                field="body.messages",
                remedy="shorten them, or ask for fewer max_tokens",
            )
        return parts

    @property
    def _summary_tokens(self) -> int:
        return min(SUMMARY_TOKENS, self._core.info.context_tokens // 8)

    async def summarise(self, run: Run, messages: Sequence[Message], max_tokens: int) -> str:
        """Return a summary of a conversation of any length.

        Raises:
            ContextTooLong: it takes more than MAX_SUMMARIES readings.
            CoreError: the core failed.
        """
        summary, rest = "", _transcript(messages)
        for reading in range(MAX_SUMMARIES):
            if not rest:
                return summary
            piece = await self._reader.read(
                len(rest), partial(self._piece, summary, rest, max_tokens)
            )
            summary = await self._generate(
                run, _request(summary, rest[:piece]), max_tokens, reading
            )
            rest = rest[piece:]
        if rest:
            raise ContextTooLong(
                f"what is to be summarised takes more than {MAX_SUMMARIES} readings of core "
                f"{self._core.info.name!r}, whose context holds "
                f"{self._core.info.context_tokens} tokens",
                field="body.messages",
                remedy="shorten the conversation",
            )
        return summary

    def _piece(self, summary: str, rest: str, max_tokens: int) -> int:
        """Return how many characters of `rest` the core can read at once."""
        room = self._core.info.context_tokens - max_tokens

        def fits(size: int) -> bool:
            return self._count(_request(summary, rest[:size])) <= room

        size = _longest(len(rest), fits)
        if size == 0:
            raise ContextTooLong(
                f"the context of core {self._core.info.name!r} holds "
                f"{self._core.info.context_tokens} tokens, too few for a summary of {max_tokens}",
                field="body.max_tokens",
                remedy="ask for a shorter summary",
            )
        return size

    async def _generate(
        self, run: Run, messages: Sequence[Message], max_tokens: int, reading: int
    ) -> str:
        prompt = await self._reader.read(
            characters_of(messages), lambda: tuple(self._core.render(messages))
        )
        request = GenerationRequest(
            request_id=_reading_id(run.lease.job_id, reading),
            prompt_ids=prompt,
            max_tokens=max_tokens,
            sampling=Sampling(),
            kv_owner=run.kv_owner,
        )
        ids: list[int] = []
        ended = False
        async with contextlib.aclosing(self._core.generate(request)) as steps:
            async for step in steps:
                ids += step.ids
                run.count_tokens(len(step.ids))
                run.note_step(step.cached_tokens, step.billed)
                ended = ended or step.finish_reason is not None
        if not ended:
            raise CoreError("the core ended a summary that nobody aborted")
        return self._trimmed(self._core.decode(ids).decode("utf-8", "replace").strip(), max_tokens)

    def _trimmed(self, summary: str, max_tokens: int) -> str:
        """Return as much of a summary as has `max_tokens` when it is read.

        That may be less than all: text is not always read with the tokens it was written with.
        """
        room = self._count((as_message(""),)) + max_tokens
        size = _longest(len(summary), lambda n: self._count((as_message(summary[:n]),)) <= room)
        return summary[:size]


def _longest(most: int, fits: Callable[[int], bool]) -> int:
    """Return the largest size up to `most` that fits; 0: none does."""
    if fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _reading_id(job_id: str, reading: int) -> str:
    """Return a request id of its own, 32 hex digits as all have."""
    return hashlib.blake2b(f"{job_id}.summary.{reading}".encode(), digest_size=16).hexdigest()


def _request(summary: str, piece: str) -> tuple[Message, ...]:
    before = f"{FRAME}{summary}\n\nIt went on:\n" if summary else ""
    return Message("system", TASK), Message("user", before + piece)


def _transcript(messages: Sequence[Message]) -> str:
    return "\n".join(f"{message.role}: {_said(message)}" for message in messages)


def _said(message: Message) -> str:
    calls = [f"calls {call.name}({call.arguments})" for call in message.tool_calls]
    return " ".join([message.content, *calls]).strip()
