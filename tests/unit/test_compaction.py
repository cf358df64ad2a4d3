"""What of a conversation stays, what is summarised: the pure part of compaction."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.errors import ContextTooLong
from aios_broker.contract.llm import Message, Tool, ToolCall
from aios_broker.queues.records import Lease
from aios_workers.llm.conversation import (
    Summariser,
    counter,
    fitting_split,
    split,
)
from aios_workers.llm.core import Reader
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.runs import Run

Ids = tuple[int, ...]
turns = st.builds(
    Message, st.sampled_from(["system", "user", "assistant", "tool"]), st.text(max_size=30)
)
conversations = st.lists(turns, max_size=12).map(tuple)


def spoken(messages: Sequence[Message]) -> int:
    """Count characters and one more for each message: a tokenizer that is easy to follow."""
    return sum(len(message.content) + 1 for message in messages)


@given(conversations, st.integers(0, 12))
def test_a_split_keeps_every_message_in_its_order(
    messages: tuple[Message, ...], keep_last: int
) -> None:
    parts = split(messages, keep_last)

    assert (*parts.head, *parts.old, *parts.tail) == messages
    assert all(message.role == "system" for message in parts.head)
    assert not parts.old or parts.old[0].role != "system"
    assert len(parts.tail) >= min(keep_last, len(messages) - len(parts.head))


@given(conversations, st.integers(0, 12))
def test_an_answer_of_a_tool_is_never_parted_from_its_call(
    messages: tuple[Message, ...], keep_last: int
) -> None:
    parts = split(messages, keep_last)

    if parts.old and parts.tail:
        assert parts.tail[0].role != "tool"


@given(conversations, st.integers(1, 300))
def test_the_longest_tail_that_fits_is_kept(messages: tuple[Message, ...], room: int) -> None:
    parts = fitting_split(messages, spoken, room)
    fitting = [
        each
        for keep in range(1, len(messages) + 1)
        if spoken((*(each := split(messages, keep)).head, *each.tail)) <= room
    ]

    assert (parts is None) == (not fitting)
    if parts is not None:
        assert len(parts.tail) == max(len(each.tail) for each in fitting)


async def core(context_tokens: int) -> SimulatedCore:
    core = SimulatedCore(SimulatedCoreConfig(context_tokens=context_tokens, end_probability=0.0))
    await core.start()
    return core


def run() -> Run:
    return Run(Lease("0" * 32, 1, b"", True, False, 0, 0, 0, 0, 0, 60, False))


async def test_a_conversation_that_fits_is_left_alone() -> None:
    messages = (Message("user", "short"),)
    model = await core(256)
    compacted = await Summariser(model, Reader()).compact(run(), messages, 32, counter(model))

    assert compacted == messages


async def test_the_oldest_turns_become_one_summary_and_the_rest_stays() -> None:
    model = await core(512)
    system = Message("system", "be brief")
    talk = tuple(Message("user", f"number {n} " + "x" * 60) for n in range(12))
    charged = run()
    compacted = await Summariser(model, Reader()).compact(
        charged, (system, *talk), 64, counter(model)
    )

    head, summary, *tail = compacted
    assert head == system
    assert summary.role == "system"
    assert summary.content.startswith("Summary of the earlier conversation:\n")
    assert 0 < len(tail) < 12
    assert tuple(tail) == talk[-len(tail) :]
    assert counter(model)(compacted) + 64 <= 512
    assert charged.use().tokens > 0, "what the summary cost is charged"


async def test_what_cannot_be_compacted_is_refused_with_both_numbers() -> None:
    model = await core(256)
    with pytest.raises(ContextTooLong, match=r"has at least \d+ tokens.*may have 32.*holds 256"):
        await Summariser(model, Reader()).compact(
            run(), (Message("user", "x" * 400),), 32, counter(model)
        )


async def test_what_is_far_too_long_is_not_read_to_compare_it() -> None:
    class Reading(SimulatedCore):
        read = 0

        def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Ids:
            if sum(len(each.content) for each in messages) > 1_000:
                raise ContextTooLong("too long")
            ids = super().render(messages, tools)
            self.read += len(ids)
            return ids

    model = Reading(SimulatedCoreConfig(context_tokens=512))
    long = tuple(Message("user", "x" * 100) for _ in range(2_000))
    count = counter(model, bounded=True)

    assert count(long) == 513
    assert len((await Summariser(model, Reader()).split_for(long, 32, count)).tail) == 3
    assert model.read < 10_000


async def test_a_summary_reads_more_than_one_context_piece_by_piece() -> None:
    model = await core(768)
    long = tuple(Message("user", f"{n}: " + "word " * 100) for n in range(6))
    first = await Summariser(model, Reader()).summarise(run(), long, 32)
    second = await Summariser(model, Reader()).summarise(run(), long, 32)

    assert first == second
    assert first


async def test_too_much_to_summarise_is_refused() -> None:
    model = await core(512)
    with pytest.raises(ContextTooLong, match="more than 64 readings"):
        await Summariser(model, Reader()).summarise(run(), (Message("user", "x" * 100_000),), 64)


def test_tokens_beyond_the_context_are_counted_message_by_message() -> None:
    class Narrow(SimulatedCore):
        def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Ids:
            ids = super().render(messages, tools)
            if len(ids) > 100:
                raise ContextTooLong("too long")
            return ids

    model = Narrow(SimulatedCoreConfig(context_tokens=100))
    calls = (ToolCall("1", "find", "y" * 20),)
    short = (Message("user", "x" * 50),)

    assert counter(model)(short) == len(SimulatedCore.render(model, short))
    assert counter(model)(short * 3) >= 3 * 50
    assert counter(model)((Message("assistant", "z" * 400, tool_calls=calls),)) > 400
    assert counter(model)(()) == 0
