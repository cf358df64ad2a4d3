"""Events of an SGLang stream become steps: new ids only, no end token, an ending we trust."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_workers.llm.core import Step
from aios_workers.llm.cores.sglang.client import (
    EngineFailure,
    Event,
    Finish,
    Meta,
    Refusal,
    decode_line,
)
from aios_workers.llm.cores.sglang.steps import NO_LOGPROB, StepMaker

END = 1
LENGTH = Finish("length")
STOP = Finish("stop", matched=END)
ABORT = Finish("abort", message="Aborted")


def maker(wanted: int = 8, **kind: Any) -> StepMaker:  # noqa: ANN401
    values = {"is_end": lambda token: token == END, **kind}
    return StepMaker(wanted_tokens=wanted, **values)


def event(ids: list[int], finish: Finish | None = None, **meta: Any) -> Event:  # noqa: ANN401
    return Event(ids, Meta(finish_reason=finish, **meta))


@given(
    ids=st.lists(st.integers(2, 99), min_size=1, max_size=30),
    cuts=st.sets(st.integers(0, 30)),
    ending=st.sampled_from(["length", "stop", "abort"]),
    incremental=st.booleans(),
)
def test_all_ids_come_once_however_they_are_cut(
    *, ids: list[int], cuts: set[int], ending: str, incremental: bool
) -> None:
    sent = [*ids, END] if ending == "stop" else ids
    points = [*sorted(cut for cut in cuts if cut < len(sent)), len(sent)]
    steps = maker(len(ids) + (ending != "length"), incremental=incremental)
    finish = {"length": LENGTH, "stop": STOP, "abort": ABORT}[ending]
    taken: list[Step] = []
    begin = 0
    for point in points:
        part = sent[begin:point] if incremental else sent[:point]
        begin = point
        last = finish if point == len(sent) else None
        step = steps.take(event(part, last, cached_tokens=5), aborted=True)
        if step is not None:
            taken.append(step)
    assert [token for step in taken for token in step.ids] == ids
    expected = None if ending == "abort" else ending
    assert [step.finish_reason for step in taken] == [None] * (len(taken) - 1) + [expected]
    assert [step.cached_tokens for step in taken] == [5] + [0] * (len(taken) - 1)
    assert steps.ended


def test_an_abort_that_comes_with_the_end_token_is_an_end() -> None:
    assert maker().take(event([5, END], ABORT), aborted=True) == Step((5,), "stop")


def test_an_abort_that_comes_with_the_last_token_is_an_end() -> None:
    assert maker(2).take(event([5, 6], ABORT), aborted=True) == Step((5, 6), "length")


@pytest.mark.parametrize("incremental", [False, True])
def test_an_abort_of_a_request_that_was_pushed_out_says_nothing_new(*, incremental: bool) -> None:
    steps = maker(incremental=incremental)
    assert steps.take(event([5, 6], completion_tokens=2), aborted=True) == Step((5, 6))
    assert steps.take(event([6], ABORT, completion_tokens=2), aborted=True) is None
    assert steps.ended


def test_an_end_token_that_our_files_do_not_know_is_left_out_too() -> None:
    step = maker().take(event([5, 77], Finish("stop", matched=77)), aborted=False)
    assert step == Step((5,), "stop")


def test_an_end_token_at_the_very_last_place_is_a_stop() -> None:
    assert maker(2).take(event([5, END], STOP), aborted=False) == Step((5,), "stop")


def test_logprobs_come_with_their_ids_and_that_of_the_end_token() -> None:
    steps = maker(logprobs=True)
    first = event(
        [5],
        output_token_logprobs=[(-0.5, 5, None)],
        output_top_logprobs=[[(-0.5, 5, None), (None, 6, None)]],
    )
    last = event(
        [5, END],
        STOP,
        output_token_logprobs=[(-0.5, 5, None), (-0.1, END, None)],
        output_top_logprobs=[[(-0.5, 5, None)], [(-0.1, END, None)]],
    )
    taken = [steps.take(first, aborted=False), steps.take(last, aborted=False)]
    assert [len(step.logprobs) for step in taken if step] == [1, 1]
    assert taken[0] is not None
    assert taken[0].logprobs[0].top[1].logprob == NO_LOGPROB
    assert taken[1] is not None
    assert (taken[1].ids, taken[1].logprobs[0].id) == ((), END)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([event([5]), event([])], "took back"),
        ([event([2] * 9)], "more tokens than were asked for"),
        ([event([5], LENGTH)], "after 1 of 8 tokens"),
        ([event([5], Finish("stop", matched="\n"))], "'stop'"),
        ([event([5], Finish("else"))], "'else'"),
        ([event([5], STOP)], "'stop'"),
        ([event([5], ABORT)], "aborted on its own"),
        ([event([5], Finish("abort", message="no grammar", status_code=400))], "no grammar"),
        ([event([5, END], STOP), event([5, END])], "went on after the end"),
        ([Event(error=Refusal("too long", 400))], "too long"),
        ([Event(error="broken")], "broken"),
        ([event([5], weight_version="2")], "weights are now '2'"),
    ],
)
def test_what_contradicts_itself_is_a_failure(bad: list[Event], said: str) -> None:
    steps = maker(weight_version="1")
    *good, last = bad
    for each in good:
        steps.take(each, aborted=False)
    with pytest.raises(EngineFailure, match=said):
        steps.take(last, aborted=False)


@pytest.mark.parametrize(("code", "sick"), [(400, False), (503, True)])
def test_what_we_asked_wrongly_does_not_make_the_server_sick(code: int, *, sick: bool) -> None:
    for bad in (event([], Finish("abort", status_code=code)), Event(error=Refusal("x", code))):
        with pytest.raises(EngineFailure) as caught:
            maker().take(bad, aborted=False)
        assert caught.value.sick is sick


def test_logprobs_of_other_tokens_are_a_failure() -> None:
    for wrong in ([], [(-0.5, 6, None)]):
        with pytest.raises(EngineFailure, match="log-probabilities"):
            maker(logprobs=True).take(event([5], output_token_logprobs=wrong), aborted=False)


def test_lines_are_read() -> None:
    said = b'data: {"text":"x","output_ids":[3],"meta_info":{"finish_reason":null,"new":1}}'
    assert decode_line(said) == Event([3], Meta())
    assert [decode_line(line) for line in (b"", b": comment")] == [None] * 2
    assert decode_line(b"data: [DONE]") == "done"
