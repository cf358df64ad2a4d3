"""A slot waits for a moment to hear whether a form can be kept; what was begun is not lost."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable

import pytest
from llguidance import LLMatcher

from aios_broker.contract.errors import CoreError
from aios_broker.contract.llm import JsonFormat, LlmChat, Message
from aios_broker.contract.reply import ChatResult
from aios_broker.contract.syscall import Syscall
from aios_broker.places import Holder
from aios_workers.llm.constraint import Compiler
from aios_workers.llm.core import Constraint
from aios_workers.llm.cores.simulated import simulated_model as vocabulary
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore
from aios_workers.llm.verdicts import PATIENCE_S, FormPending, Verdicts
from aios_workers.runtime.executor import Done, Suspended
from aios_workers.runtime.runs import Run
from tests.cut_handler import SYSCALL_ID, Cuts, handler_of, lease
from tests.scripted_core import ScriptedCore

ONE = Holder("acme", "one")
NO_TIME_S = 0.0
WORD = Constraint("regex", "ab?")


class Finder:
    """Finds out when it is let; notes who asked, and what became of it."""

    def __init__(self) -> None:
        self.turn = asyncio.Event()
        self.found = asyncio.Event()
        self.asked: list[str] = []
        self.given_up: list[str] = []
        self.error: CoreError | None = None

    async def find(self, subject: str, holder: Holder, begin: Callable[[], None]) -> str:
        self.asked.append(subject)
        try:
            await self.turn.wait()
            begin()
            await self.found.wait()
        except asyncio.CancelledError:
            self.given_up.append(subject)
            raise
        if self.error is not None:
            raise self.error
        return f"{subject} of {holder.agent}"


async def test_what_has_begun_is_found_out_for_whoever_comes_back() -> None:
    finder = Finder()
    verdicts = Verdicts(finder.find)
    finder.turn.set()
    for _ in range(3):
        with pytest.raises(FormPending):
            await verdicts.of("it", ONE, NO_TIME_S)
        await asyncio.sleep(0)
    finder.found.set()
    assert await verdicts.of("it", ONE, None) == "it of one"
    assert await verdicts.of("it", ONE, NO_TIME_S) == "it of one"
    assert (finder.asked, finder.given_up) == (["it"], [])


async def test_what_waits_for_its_turn_waits_no_longer_than_its_slot() -> None:
    finder = Finder()
    verdicts = Verdicts(finder.find)
    patient = asyncio.create_task(verdicts.of("other", ONE, None))
    await asyncio.sleep(0)
    for number in range(2):
        with pytest.raises(FormPending):
            await verdicts.of("it", ONE, 0.01)
        await asyncio.sleep(0)
        assert finder.given_up == ["it"] * (number + 1)
    finder.turn.set()
    finder.found.set()
    assert await patient == "other of one"
    assert await verdicts.of("it", ONE, None) == "it of one"
    assert finder.asked == ["other", "it", "it", "it"]


async def test_all_who_ask_at_once_hear_one_verdict_and_an_error_is_not_kept() -> None:
    finder = Finder()
    verdicts = Verdicts(finder.find)
    finder.turn.set()
    finder.error = CoreError("not now")
    asking = [asyncio.create_task(verdicts.of("it", ONE, None)) for _ in range(3)]
    await asyncio.sleep(0)
    finder.found.set()
    heard = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(each) for each in heard] == [CoreError] * 3
    finder.error = None
    assert await verdicts.of("it", ONE, None) == "it of one"
    assert finder.asked == ["it", "it"]


async def test_closing_ends_what_is_under_way() -> None:
    finder = Finder()
    verdicts = Verdicts(finder.find)
    finder.turn.set()
    with pytest.raises(FormPending):
        await verdicts.of("it", ONE, 0.01)
    await verdicts.close()
    assert finder.given_up == ["it"]


# Where slots are held.


async def test_a_chat_whose_form_is_not_known_yet_leaves_its_slot() -> None:
    patience: list[float | None] = []

    async def check(constraint: Constraint, holder: Holder, patience_s: float | None) -> None:
        patience.append(patience_s)
        if len(patience) == 1:
            raise FormPending

    handler = handler_of(SimulatedCore(check=check), Cuts(random.Random(0)))
    body = LlmChat((Message("user", "x"),), format=JsonFormat(), max_tokens=4)
    syscall = Syscall(SYSCALL_ID, "ada", body)
    outcome = await handler.run(Run(lease(has_snapshot=False)), syscall)
    assert outcome == Suspended(None, "suspend")
    assert isinstance(await handler.run(Run(lease(has_snapshot=False)), syscall), Done)
    assert patience == [PATIENCE_S] * 2
    await handler.close()


@pytest.mark.parametrize("is_slow", [True, False])
async def test_an_answer_that_waits_to_be_looked_at_leaves_its_slot(*, is_slow: bool) -> None:
    number = {"type": "integer"}
    slow = {"$defs": {"n": number}, "properties": {"age": {"$ref": "#/$defs/n"}}}
    schema = slow if is_slow else {"properties": {"age": number}}
    handler = handler_of(ScriptedCore('{"age": 7}'), Cuts(random.Random(0)))
    body = LlmChat((Message("user", "x"),), format=JsonFormat(schema))
    run = Run(lease(has_snapshot=False))
    aside: list[Run] = []
    run.on_aside = aside.append
    outcome = await handler.run(run, Syscall(SYSCALL_ID, "ada", body))
    assert isinstance(outcome, Done)
    assert isinstance(outcome.result, ChatResult)
    assert aside == ([run] if is_slow else [])
    await handler.close()


# Where forms are compiled.


class Noting(Compiler):
    """Notes in which threads it compiled."""

    threads: list[int]

    def _compile(self, constraint: Constraint, *, narrow: bool) -> LLMatcher:
        self.threads.append(threading.get_ident())
        return super()._compile(constraint, narrow=narrow)


async def test_a_form_is_compiled_once_and_beside_the_loop() -> None:
    compiler = Noting(vocabulary.constraint_pieces(), (vocabulary.END_ID,), tuple)
    compiler.threads = []
    first = await compiler.begin(WORD)
    first.add(ord("a"))
    second = await compiler.begin(WORD)
    assert set(second.allowed().nonzero()[0].tolist()) == {ord("a")}  # it has read nothing
    later = await compiler.begin(WORD, (ord("a"),))
    assert later.may_end
    assert len(compiler.threads) == 1
    assert compiler.threads[0] != threading.get_ident()
