"""Stored contexts: syscalls through a worker, and the steps under them when they come twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import redis

from aios_broker.contract.errors import Cancelled, ContextChanged, ContextTooLong, InvalidSyscall
from aios_broker.contract.llm import (
    ContextBody,
    ContextClear,
    ContextExpand,
    ContextGet,
    ContextSet,
    ContextSummarise,
    LlmChat,
    Message,
)
from aios_broker.contract.reply import ContextResult, Reply
from aios_broker.contract.syscall import new_id
from aios_broker.queues.contexts import MAX_MESSAGES, OP_TTL_S, ContextOwner, Contexts
from aios_broker.queues.module_queue import ClaimRequest, ModuleQueue
from aios_broker.queues.records import Suspension
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.registry import llm_module
from tests.caller import Caller, chat_result, running_worker

CONFIG = SimulatedCoreConfig(slots=2, end_probability=0.0, context_tokens=1024)
OWNER = ContextOwner("default", "ada", "main")
HELLO = (Message("system", "be kind"), Message("user", "hello"))


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    caller = Caller(redis_url)
    await caller.publish_policy(quantum_s=60.0, quantum_tokens=16)
    yield caller
    await caller.aclose()


@pytest.fixture
async def served(caller: Caller) -> AsyncIterator[Caller]:
    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(CONFIG))):
        yield caller


async def ask(caller: Caller, body: ContextBody | LlmChat) -> Reply:
    [syscall_id] = await caller.submit(body)
    return await caller.hear(syscall_id)


async def context(caller: Caller, body: ContextBody) -> ContextResult:
    result = (await ask(caller, body)).unwrap()
    assert isinstance(result, ContextResult)
    return result


async def stored(caller: Caller) -> tuple[Message, ...]:
    return (await context(caller, ContextGet())).messages


async def test_a_context_is_set_grows_and_is_cleared(served: Caller) -> None:
    empty = await context(served, ContextGet())
    assert (empty.version, empty.messages, empty.tokens) == (0, (), 0)

    first = await context(served, ContextSet(HELLO))
    more = await context(served, ContextExpand((Message("assistant", "hi"),)))
    read = await context(served, ContextGet())

    core = SimulatedCore(CONFIG)
    assert (first.version, first.message_count, first.tokens) == (1, 2, len(core.render(HELLO)))
    assert (more.version, more.message_count, more.messages) == (2, 3, ())
    assert read.messages == (*HELLO, Message("assistant", "hi"))
    assert (read.tokens, read.limit_tokens) == (len(core.render(read.messages)), 1024)

    cleared = await context(served, ContextClear())
    assert (cleared.message_count, cleared.tokens) == (0, 0)
    assert await stored(served) == ()


async def test_contexts_of_other_names_and_owners_are_others(served: Caller) -> None:
    await context(served, ContextSet(HELLO))

    assert (await context(served, ContextGet(context="other"))).messages == ()
    assert ContextOwner("a/b", "c", "d").key != ContextOwner("a", "b/c", "d").key


async def test_a_chat_stands_in_its_context_and_adds_to_it(served: Caller) -> None:
    await context(served, ContextSet(HELLO))
    question = (Message("user", "how are you?"),)
    options = {"max_tokens": 12, "return_ids": True}
    alone = chat_result(await ask(served, LlmChat((*HELLO, *question), **options)))  # type: ignore[arg-type]
    inside = chat_result(await ask(served, LlmChat(question, context="main", **options)))  # type: ignore[arg-type]

    assert inside.prompt_ids == alone.prompt_ids
    assert await stored(served) == (*HELLO, *question, Message("assistant", inside.text))


async def test_a_chat_that_runs_again_sees_and_changes_its_context_once(caller: Caller) -> None:
    contexts, syscall_id = Contexts(caller.functions), new_id()
    await contexts.change(OWNER, new_id(), "set", HELLO)
    first = await contexts.open(OWNER, syscall_id)
    turn = (Message("user", "more"), Message("assistant", "yes"))
    once = await contexts.change(OWNER, syscall_id, "append", turn)
    again = await contexts.open(OWNER, syscall_id)
    twice = await contexts.change(OWNER, syscall_id, "append", turn)

    assert (first.messages, first.applied) == (HELLO, False)
    assert (again.messages, again.applied) == (HELLO, True)
    assert twice == once
    assert await contexts.peek(OWNER) == (*HELLO, *turn)


async def test_what_a_syscall_first_saw_is_what_it_sees_again(caller: Caller) -> None:
    contexts, syscall_id = Contexts(caller.functions), new_id()
    await contexts.change(OWNER, new_id(), "set", HELLO)
    await contexts.open(OWNER, syscall_id)
    await contexts.change(OWNER, new_id(), "append", HELLO)
    assert (await contexts.open(OWNER, syscall_id)).messages == HELLO

    await contexts.change(OWNER, new_id(), "set", HELLO[1:])
    assert (await contexts.open(OWNER, syscall_id)).messages == HELLO[1:]


async def test_a_summary_replaces_the_old_turns_and_keeps_the_last(served: Caller) -> None:
    talk = tuple(Message("user", f"turn {n}") for n in range(6))
    await context(served, ContextSet((HELLO[0], *talk)))
    summed = await context(served, ContextSummarise(keep_last=2, max_tokens=16))
    system, summary, *rest = summed.messages

    assert (system, tuple(rest)) == (HELLO[0], talk[-2:])
    assert summary.content.startswith("Summary of the earlier conversation:\n")
    assert await stored(served) == summed.messages
    assert summed.message_count == 4


async def test_a_context_with_nothing_old_is_left_alone(served: Caller) -> None:
    await context(served, ContextSet(HELLO))
    summed = await context(served, ContextSummarise(keep_last=2))

    assert (summed.messages, summed.version) == (HELLO, 1)


async def test_a_rewritten_context_is_not_overwritten_by_a_late_summary(caller: Caller) -> None:
    contexts = Contexts(caller.functions)
    await contexts.change(OWNER, new_id(), "set", HELLO)
    seen = await contexts.open(OWNER, syscall_id := new_id())
    await contexts.change(OWNER, new_id(), "append", HELLO[1:])
    grown = await contexts.replace_first(OWNER, syscall_id, drop=1, seen=seen, messages=HELLO[1:])
    assert grown.message_count == 3
    assert await contexts.peek(OWNER) == HELLO[1:] * 3

    with pytest.raises(ContextChanged):
        await contexts.replace_first(OWNER, new_id(), drop=1, seen=seen, messages=HELLO)
    assert await contexts.peek(OWNER) == HELLO[1:] * 3


async def test_a_context_has_its_limits_and_a_refusal_changes_nothing(caller: Caller) -> None:
    contexts = Contexts(caller.functions)
    await contexts.change(OWNER, new_id(), "set", HELLO[1:] * MAX_MESSAGES)
    with pytest.raises(InvalidSyscall, match="its limits are 10000 and 4194304"):
        await contexts.change(OWNER, new_id(), "append", HELLO)
    with pytest.raises(InvalidSyscall, match="messages of 5000"):
        await contexts.change(OWNER, new_id(), "set", [Message("user", "x" * 5_000_000)])

    assert len(await contexts.peek(OWNER)) == MAX_MESSAGES


async def test_a_chat_that_is_too_long_is_refused_or_compacted_as_asked(served: Caller) -> None:
    talk = tuple(Message("user", f"turn {n} " + "x" * 100) for n in range(20))
    refused = await ask(served, LlmChat(talk, max_tokens=64))
    with pytest.raises(ContextTooLong, match=r"has \d+ tokens .* may have 64.*holds 1024"):
        refused.unwrap()

    body = LlmChat(talk, max_tokens=64, overflow="compact", return_ids=True)
    result = chat_result(await ask(served, body))
    assert 0 < result.compacted_messages < 20
    assert len(result.prompt_ids) + 64 <= 1024
    fits = LlmChat(talk[:2], max_tokens=64, overflow="compact")
    assert chat_result(await ask(served, fits)).compacted_messages == 0


async def test_a_compacted_chat_that_is_suspended_is_what_it_would_have_been(
    caller: Caller,
) -> None:
    talk = tuple(Message("user", f"turn {n} " + "x" * 100) for n in range(20))
    body = LlmChat(talk, max_tokens=80, overflow="compact", return_ids=True)
    slow = replace(CONFIG, slots=1, decode_tokens_per_s=2_000.0)
    async with running_worker(caller.url, "llm", await llm_module(SimulatedCore(slow))):
        alone = chat_result(await ask(caller, body))
        replies = await caller.hear_all(await caller.submit(body, body))

    assert all(reply.timings.suspensions > 0 for reply in replies)
    for result in map(chat_result, replies):
        assert (result.prompt_ids, result.output_ids) == (alone.prompt_ids, alone.output_ids)
        assert (result.text, result.compacted_messages) == (alone.text, alone.compacted_messages)


async def test_an_attempt_that_lost_its_lease_changes_no_context(caller: Caller) -> None:
    contexts = Contexts(caller.functions)
    queue = ModuleQueue(caller.functions, "llm")
    [syscall_id] = await caller.submit(ContextSet(HELLO))
    [lease] = await queue.claim("slow", ClaimRequest(1, 30.0))
    seen = await contexts.open(OWNER, syscall_id)
    await queue.suspend("slow", [Suspension(lease, None, 0.0)], ClaimRequest(0, 30.0))
    [second] = await queue.claim("other", ClaimRequest(1, 30.0))
    with pytest.raises(Cancelled):
        await contexts.change(OWNER, syscall_id, "set", HELLO, attempt=lease.attempt)
    with pytest.raises(Cancelled):
        await contexts.replace_first(
            OWNER, syscall_id, drop=0, seen=seen, messages=HELLO, attempt=lease.attempt
        )
    assert await contexts.peek(OWNER) == ()
    await contexts.change(OWNER, syscall_id, "set", HELLO, attempt=second.attempt)
    assert await contexts.peek(OWNER) == HELLO


async def test_what_a_syscall_found_is_kept_an_hour_longer_than_it_may_run(
    caller: Caller, redis_url: str
) -> None:
    contexts = Contexts(caller.functions)
    [syscall_id] = await caller.submit(ContextGet())
    await contexts.open(OWNER, syscall_id)
    await contexts.open(OWNER, stranger := new_id())
    with redis.Redis.from_url(redis_url) as client:
        of_job, of_none = (client.ttl(f"rq:aios:context-op:{i}") for i in (syscall_id, stranger))
    assert 3600 < of_job <= 3600 + 600
    assert of_none > OP_TTL_S - 60


async def test_nothing_is_dropped_where_nothing_is_to_be(caller: Caller) -> None:
    contexts = Contexts(caller.functions)
    await contexts.change(OWNER, new_id(), "set", HELLO[1:])
    seen = await contexts.open(OWNER, syscall_id := new_id())
    await contexts.replace_first(OWNER, syscall_id, drop=0, seen=seen, messages=HELLO[:1])
    assert await contexts.peek(OWNER) == HELLO
