"""A KV state gets a file only where reading its tokens again costs far more."""

import pytest

from aios_workers.llm.cores.llama.state_store import READ_MARGIN, WRITE_MARGIN, StateRule

BYTES_PER_TOKEN = 23_100
MB = 1_000_000


@pytest.mark.parametrize(
    ("tokens", "prefill_ms_per_token", "worth"),
    [
        (1_024, 14.0, True),  # the embedded model here
        (128, 14.0, True),
        (8, 14.0, True),
        (1, 14.0, False),  # a file costs more than a token
        (1_024, 0.05, False),  # a model that reads 20,000 tokens/s
    ],
)
def test_what_is_worth_a_file(tokens: int, prefill_ms_per_token: float, *, worth: bool) -> None:
    rule = StateRule(prefill_ms_per_token)
    assert rule.pays_to_write(tokens, tokens * BYTES_PER_TOKEN) is worth


def test_writing_needs_the_margin() -> None:
    """1 MB: 2 ms for the two operations, 3 for writing and 2 for reading its bytes."""
    for share, worth in ((1.01, True), (0.99, False)):
        rule = StateRule(prefill_ms_per_token=share * WRITE_MARGIN * 7.0 / 100)
        assert rule.pays_to_write(100, MB) is worth


def test_reading_needs_less() -> None:
    for share, worth in ((1.01, True), (0.99, False)):
        rule = StateRule(prefill_ms_per_token=share * READ_MARGIN * 3.0 / 100)
        assert rule.pays_to_read(100, MB) is worth
    assert not StateRule(14.0).pays_to_read(0, MB)
    assert not StateRule(14.0).pays_to_read(-5, MB)


def test_a_slow_disk_is_noticed_and_tried_again_later() -> None:
    rule = StateRule(prefill_ms_per_token=14.0)
    for _ in range(20):
        rule.wrote(10 * MB, took_ms=5_000)
    assert not rule.pays_to_write(512, 512 * BYTES_PER_TOKEN)
    passed_over = 0
    while not rule.pays_to_write(512, 512 * BYTES_PER_TOKEN):
        rule.passed_over()
        passed_over += 1
        assert passed_over < 200
    assert passed_over > 20


def test_the_latest_times_count() -> None:
    rule = StateRule(prefill_ms_per_token=1.0)
    for _ in range(40):
        rule.wrote(10 * MB, took_ms=51.0)
        rule.read(10 * MB, took_ms=11.0)
    assert rule.write_ms_per_mb == pytest.approx(5.0, rel=0.01)
    assert rule.read_ms_per_mb == pytest.approx(1.0, rel=0.01)
