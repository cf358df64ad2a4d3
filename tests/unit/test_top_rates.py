"""Tokens per second of `aios top`: all together as the kernel counts, each core as is seen."""

from aios_broker.queues.records import JobView
from aios_cli.top_rates import RATE_S, OutputRates
from tests.unit.test_cli_tables import job


def seen(job_id: str, core: str, tokens: int, **fields: object) -> JobView:
    return job("running", job_id=job_id, queue=f"llm.{core}", tokens=tokens, **fields)


def test_one_look_knows_no_rate() -> None:
    rates = OutputRates()
    rates.note(0.0, 1_000, [seen("a", "small", 900)])
    assert (rates.per_s(), rates.by_core()) == (None, {})


def test_each_core_has_its_share_of_what_was_counted() -> None:
    rates = OutputRates()
    rates.note(0.0, 1_000, [seen("a", "small", 900), seen("b", "large", 50)])
    rates.note(2.0, 1_080, [seen("a", "small", 960), seen("b", "large", 70)])
    assert rates.per_s() == 40.0
    assert rates.by_core() == {"small": 30.0, "large": 10.0}


def test_what_came_and_went_between_two_looks_is_counted_of_no_other_core() -> None:
    rates = OutputRates()
    rates.note(0.0, 0, [])
    rates.note(1.0, 30, [seen("new", "small", 10, age_s=0.5), seen("x", "large", 0)])
    rates.note(2.0, 60, [seen("new", "small", 20, age_s=1.5), seen("x", "large", 0)])
    assert rates.by_core() == {"small": 30.0}  # with 20 tokens of one that nobody saw


def test_an_old_syscall_that_comes_into_view_has_not_written_all_of_it_now() -> None:
    rates = OutputRates()
    rates.note(0.0, 5_000, [seen("a", "small", 10)])
    rates.note(1.0, 5_010, [seen("a", "small", 20), seen("old", "large", 4_000, age_s=RATE_S)])
    assert rates.by_core() == {"small": 10.0}


def test_only_the_last_seconds_count() -> None:
    rates = OutputRates()
    for second in range(40):
        tokens = min(second, 20) * 10  # it stops after 20 s
        rates.note(float(second), tokens, [seen("a", "small", tokens)])
    assert rates.per_s() == 0.0
    assert rates.by_core() == {}


def test_tools_write_no_tokens() -> None:
    rates = OutputRates()
    rates.note(0.0, 0, [])
    rates.note(1.0, 0, [job("running", module="tool", queue="tool", tokens=5)])
    assert rates.by_core() == {}
