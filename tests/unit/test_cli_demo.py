"""The demo's load, figures and verdict, from runs made by hand."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from aios_broker.contract.errors import WorkerLost
from aios_broker.contract.llm import LlmChat
from aios_broker.contract.reply import ChatResult, Reply, Timings, Usage, failure
from aios_broker.ledger.journal import Position, Transition
from aios_cli.demo.cpu_share import CpuTimes, cpu_times, others_share
from aios_cli.demo.load import Ask, DemoAgent, demo_agents, syscall_of
from aios_cli.demo.report import (
    Report,
    broken_promises,
    draw,
    figures,
    percentile,
    promises_kept,
    table_of,
)
from aios_cli.demo.rounds import best_of
from aios_cli.demo.run import Answer, PolicyRun, slices_of

STORY = Ask("story", "Tell a story.", 100, 0.0, 1)
QUESTION = Ask("question", "Why?", 10, 0.0, 2)
AGENT = DemoAgent("story", 1, 0.0, (STORY, QUESTION))


def answer(ask: Ask, queued_s: float, *, suspensions: int = 0, tokens: int = 10) -> Answer:
    result = ChatResult("text", "stop", "m", Usage(5, tokens), output_ids=tuple(range(tokens)))
    timings = Timings(queued_s, 1.0, suspensions + 1, suspensions, suspensions + 1)
    return Answer(AGENT, ask, Reply("0" * 32, result=result, timings=timings))


def run(
    policy: str, answers: Sequence[Answer], *, identical: int = 0, compared: int = 0
) -> PolicyRun:
    return PolicyRun(policy, list(answers), makespan_s=10.0, identical=identical, compared=compared)


RR = run("rr", [answer(STORY, 5.0, suspensions=4), answer(QUESTION, 1.0)], identical=1, compared=1)
FIFO = run("fifo", [answer(STORY, 0.0), answer(QUESTION, 6.0)])


@pytest.mark.parametrize("count", [2, 3, 8, 50])
def test_the_load_has_as_many_agents_as_asked_for_the_long_ones_first(count: int) -> None:
    agents = demo_agents(count)
    roles = [agent.role for agent in agents]

    assert len(agents) == len({agent.name for agent in agents}) == count
    assert roles == sorted(roles, key=["story", "list", "question"].index)
    assert {"story", "question"} <= set(roles)
    assert [agent.arrival_s for agent in agents] == sorted(agent.arrival_s for agent in agents)


def test_eight_agents_ask_for_a_load_that_fits_the_time_and_is_partly_sampled() -> None:
    asks = [ask for agent in demo_agents(8) for ask in agent.asks]

    assert 900 <= sum(ask.max_tokens for ask in asks) <= 1200
    assert {ask.temperature > 0 for ask in asks} == {True, False}
    assert len({ask.seed for ask in asks}) == len(asks)
    assert all(ask.max_tokens <= 24 for ask in asks if ask.is_short)


def test_the_same_ask_is_the_same_generation_under_a_fresh_id() -> None:
    first, second = (syscall_of(AGENT, STORY, program=p) for p in ("a", "b"))
    assert first.id != second.id
    assert first.body == second.body
    assert isinstance(first.body, LlmChat)
    assert first.body.return_ids


def test_figures_are_sums_and_nearest_rank_percentiles() -> None:
    numbers = figures(RR)
    assert (numbers.syscalls, numbers.slices, numbers.suspensions) == (2, 6, 4)
    assert (numbers.wait_mean_s, numbers.wait_p90_s, numbers.short_wait_p90_s) == (3.0, 5.0, 1.0)
    assert (numbers.syscalls_per_s, numbers.tokens_per_s) == (0.2, 2.0)
    assert percentile([float(n) for n in range(1, 11)], 90) == 9.0
    assert percentile([], 90) == 0.0


def test_a_demo_that_kept_its_promises_says_so() -> None:
    assert broken_promises(RR, FIFO) == []
    assert "short requests wait 1.0 s (p90) under rr, 6.0 s under fifo" in promises_kept(RR, FIFO)


@pytest.mark.parametrize(
    ("round_robin", "fifo", "condition"),
    [
        (run("rr", RR.answers, identical=0, compared=1), FIFO, "1 of 1 preempted generations"),
        (run("rr", FIFO.answers), run("fifo", [answer(QUESTION, 9.0)]), "no generation was"),
        (RR, run("fifo", [answer(QUESTION, 1.0)]), "p90 wait is not lower"),
        (
            run(
                "rr",
                [*RR.answers, Answer(AGENT, STORY, failure("0" * 32, WorkerLost("died")))],
                identical=1,
                compared=1,
            ),
            FIFO,
            "1 syscall failed under rr; the first one, of story-1: worker-lost",
        ),
    ],
)
def test_each_broken_promise_is_named(
    round_robin: PolicyRun, fifo: PolicyRun, condition: str
) -> None:
    [broken] = broken_promises(round_robin, fifo)
    assert condition in broken


def test_the_report_has_the_agreed_shape() -> None:
    report = Report({"rr": figures(RR), "fifo": figures(FIFO)}, {"cpus": 2}, {"python": "3"})
    written = msgspec.json.decode(msgspec.json.encode(report))
    agreed = {
        "syscalls",
        "slices",
        "suspensions",
        "identical",
        "compared",
        "makespan_s",
        "wait_mean_s",
        "wait_p90_s",
        "syscalls_per_s",
        "tokens_per_s",
    }
    assert set(written) == {"policies", "machine", "versions"}
    for policy in ("rr", "fifo"):
        assert set(written["policies"][policy]) == agreed | {"short_wait_p90_s", "others_cpu_share"}


def test_the_closing_table_has_a_column_per_policy() -> None:
    columns, rows = table_of({"rr": figures(RR), "fifo": figures(FIFO)})
    assert [column.title for column in columns] == ["figure", "rr", "fifo"]
    assert ["preempted and identical", "1 of 1", "-"] in rows


def event(at_s: float, name: str, job_id: str, ordinal: int = 0) -> Transition:
    position = Position(round(at_s * 1000))
    return Transition(position, ordinal, "llm", name, job_id, 1, "w", "", position.at)


def test_transitions_make_slices_and_a_freed_slot_is_used_again() -> None:
    slices = slices_of(
        [
            # As the ledger gives them: by syscall.
            event(0.0, "submit", "a"),
            event(0.0, "claim", "a", 1),
            event(1.0, "suspend", "a"),
            event(2.0, "claim", "a", 1),
            event(3.0, "finish", "a"),
            event(0.1, "claim", "b"),
            event(2.0, "finish", "b"),
            event(1.0, "claim", "c", 1),
            event(4.0, "reclaim", "c"),
            event(4.0, "finish", "unknown"),
        ]
    )
    assert [(one.job_id, one.lane, one.start_s, one.end_s, one.ended_by) for one in slices] == [
        ("a", 0, 0.0, 1.0, "suspend"),
        ("b", 1, 0.1, 2.0, "finish"),
        ("a", 1, 2.0, 3.0, "finish"),
        ("c", 0, 1.0, 4.0, "reclaim"),
    ]


@pytest.mark.parametrize("agents", [2, 40])
def test_the_chart_is_a_png_with_few_agents_and_with_many(tmp_path: Path, agents: int) -> None:
    crowd = demo_agents(agents)
    drawn = PolicyRun("rr", [Answer(a, a.asks[0], answer(STORY, 1.0).reply) for a in crowd], 1.0)
    events = []
    for number, agent in enumerate(crowd):
        drawn.owners[agent.name] = agent
        events += [event(number, "claim", agent.name), event(number + 1, "finish", agent.name)]
    drawn.slices = slices_of(events)

    draw([drawn, PolicyRun("fifo", makespan_s=1.0)], tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_what_others_took_of_the_processors_is_what_was_neither_idle_nor_ours() -> None:
    before, after = CpuTimes(all=1000, busy=500, ours=100), CpuTimes(all=1400, busy=800, ours=300)
    assert others_share(before, after) == 0.25
    assert others_share(before, before) is None
    assert others_share(None, after) is None


def test_our_own_work_and_that_of_our_children_is_not_others() -> None:
    before = cpu_times()
    burn = "import time\nuntil = time.process_time() + 0.3\nwhile time.process_time() < until: pass"
    subprocess.run([sys.executable, "-c", burn], check=True, timeout=30)
    after = cpu_times()
    assert before is not None
    assert after is not None
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    assert after.ours - before.ours >= 0.25 * ticks_per_s


def test_the_least_disturbed_run_counts_and_every_comparison() -> None:
    noisy, quiet = run("rr", [], identical=3, compared=4), run("rr", [], identical=2, compared=2)
    noisy.others_share, quiet.others_share = 0.4, 0.02
    best = best_of([noisy, quiet])
    assert best is quiet
    assert (best.identical, best.compared) == (5, 6)
