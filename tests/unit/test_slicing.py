"""When cutting pays: what first tokens tell of resuming, and from when on a slice is cut."""

from hypothesis import given
from hypothesis import strategies as st

from aios_workers.llm.core import ContextMemory
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore
from aios_workers.llm.slicing import (
    CROWDED_PAYS,
    MOST_MS,
    PAYS,
    ContextTokens,
    Cutting,
    ResumeCost,
    contexts_that_fit,
    slice_terms,
)

A_CONTEXT = 1_001  # tokens; all but the last one can be in memory


def measured(*, cached_ms: float = 20.0, read_ms_per_token: float = 2.0) -> ResumeCost:
    """Return what is known after a few first tokens, cached ones and read ones."""
    cost = ResumeCost()
    for _ in range(3):
        cost.began(A_CONTEXT, A_CONTEXT - 1, cached_ms, resumed=True)
        cost.began(501, 0, cached_ms + 500 * read_ms_per_token, resumed=False)
    return cost


def test_before_anything_was_measured_a_cut_costs_nothing() -> None:
    terms = slice_terms(ResumeCost(), A_CONTEXT, 0.0, fits=4, memory="m")
    assert (terms.resume_ms, terms.least_ms, terms.crowded_ms) == (0.0, 0.0, 0.0)


def test_what_is_in_memory_costs_its_first_token_and_what_is_not_its_reading() -> None:
    cost = measured()
    assert cost.resume_ms(A_CONTEXT) == 20.0
    assert cost.read_ms(1_000) == 20.0 + 1_000 * 2.0


def test_a_slice_is_ten_times_what_resuming_costs_and_twenty_times_reading_where_crowded() -> None:
    terms = slice_terms(measured(), 1_000, 150.0, fits=4, memory="m")
    assert terms.least_ms == PAYS * 20.0
    assert terms.crowded_ms == CROWDED_PAYS * (20.0 + 2_000.0) < MOST_MS
    assert (terms.slice_ms, terms.fits, terms.memory) == (150.0, 4, "m")


def test_a_first_token_takes_a_step_in_any_case() -> None:
    cost = ResumeCost()
    cost.stepped(15.0)
    cost.began(A_CONTEXT, A_CONTEXT - 1, 20.0, resumed=True)
    assert cost.resume_ms(A_CONTEXT) == 5.0


def test_contexts_that_were_pushed_out_make_resuming_dear() -> None:
    cost = measured()
    for _ in range(30):
        cost.began(A_CONTEXT, 0, 2_000.0, resumed=True)
    assert cost.missed_share > 0.99
    assert cost.resume_ms(A_CONTEXT) > 1_900.0


def test_a_machine_that_was_busy_once_is_forgiven() -> None:
    cost = measured()
    cost.began(A_CONTEXT, A_CONTEXT - 1, 60_000.0, resumed=True)
    assert cost.resume_ms(A_CONTEXT) == 20.0


def test_where_nothing_is_cut_the_estimate_is_forgotten_until_it_is_measured_again() -> None:
    cost = measured(cached_ms=60_000.0)
    for _ in range(500):
        cost.uncut()
    assert cost.resume_ms(A_CONTEXT) < 5.0
    cost.began(A_CONTEXT, A_CONTEXT - 1, 60_000.0, resumed=True)
    assert cost.resume_ms(A_CONTEXT) == 60_000.0


def test_a_cost_that_nobody_notices_is_none() -> None:
    assert slice_terms(measured(cached_ms=1.5), 100, 0.0, fits=0, memory="").least_ms == 0.0


def test_contexts_that_fit_are_counted_by_those_that_run() -> None:
    memory = ContextMemory(tokens=10_000)
    assert contexts_that_fit(memory, [2_000, 3_000], 2) == 4
    beside = ContextMemory(tokens=10_000, beside_slots=True)
    assert contexts_that_fit(beside, [2_000, 3_000], 2) == 6
    assert contexts_that_fit(ContextMemory(), [2_000], 2) == 0  # it does not say
    assert contexts_that_fit(memory, [50_000], 2) == 1  # what runs is there


def test_contexts_are_counted_as_large_as_they_become() -> None:
    sizes = ContextTokens()
    running = [(110, 142), (130, 4_130)]
    assert sizes.expected(running) == [142, 4_130]  # nothing is known: as large as they may
    for tokens in (150, 150, 3_000):
        sizes.ended(tokens)
    assert sizes.expected(running) == [142, 150]
    assert sizes.expected([(900, 4_130)]) == [900]  # it has come so far


first_tokens = st.tuples(st.integers(1, 50_000), st.floats(0, 1), st.floats(0, 1e6), st.booleans())


@given(st.lists(first_tokens, max_size=40), st.integers(1, 50_000), st.floats(0, 1e7))
def test_whatever_was_measured_no_slice_is_kept_for_more_than_a_minute(
    seen: list[tuple[int, float, float, bool]], tokens: int, slice_ms: float
) -> None:
    cost = ResumeCost()
    for known, cached_share, took_ms, resumed in seen:
        cost.began(known, int(known * cached_share), took_ms, resumed=resumed)
    terms = slice_terms(cost, tokens, slice_ms, fits=3, memory="")
    assert 0.0 <= terms.least_ms <= terms.crowded_ms <= MOST_MS
    assert 0.0 <= cost.missed_share <= 1.0
    assert terms.resume_ms <= cost.read_ms(tokens) + 1e-6


def test_what_was_measured_is_on_the_page_of_metrics() -> None:
    cutting = Cutting(SimulatedCore())
    cutting.cost.began(1_001, 1_000, 20.0, resumed=True)
    cutting.cost.began(501, 0, 1_020.0, resumed=False)
    found = {metric.name: metric.samples[0].value for metric in cutting.metrics()}
    assert found == {
        "aios_core_resume_cached_seconds": 0.02,
        "aios_core_read_token_seconds": 0.002,
        "aios_core_resume_missed_ratio": 0.0,
    }
