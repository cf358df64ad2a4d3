"""The circuit breaker: opens after failures in a window, half-opens after a while."""

import pytest

from aios_broker.contract.errors import CoreError
from aios_workers.llm.cores.sglang.connection import BreakerPolicy, CircuitBreaker

POLICY = BreakerPolicy(failures=3, window_s=10.0, open_s=5.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(POLICY, clock)
    for _ in range(3):
        assert breaker.admit() == "go"
        breaker.failed()
    return breaker


def test_it_opens_after_failures_within_the_window(opened: CircuitBreaker, clock: Clock) -> None:
    clock.now_s += 2.0
    with pytest.raises(CoreError, match="failed 3 times within 10 s") as caught:
        opened.admit()
    assert caught.value.retry_after_s == pytest.approx(3.0)


def test_failures_far_apart_do_not_open_it(clock: Clock) -> None:
    breaker = CircuitBreaker(POLICY, clock)
    for _ in range(20):
        breaker.failed()
        clock.now_s += 5.1
    assert breaker.admit() == "go"


def test_a_success_forgets_the_failures_before_it(clock: Clock) -> None:
    breaker = CircuitBreaker(POLICY, clock)
    for _ in range(9):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert breaker.admit() == "go"


def test_after_its_time_a_probe_decides(opened: CircuitBreaker, clock: Clock) -> None:
    clock.now_s += 5.0
    assert opened.admit() == "probe"
    assert opened.circuit == "half-open"
    opened.failed()  # one is enough
    with pytest.raises(CoreError):
        opened.admit()
    clock.now_s += 5.0
    assert opened.admit() == "probe"
    opened.probed_well()
    assert (opened.circuit, opened.admit()) == ("closed", "go")


def test_health_does_not_outweigh_generations_that_fail(clock: Clock) -> None:
    breaker = CircuitBreaker(POLICY, clock)
    for _ in range(3):
        breaker.failed()
        breaker.probed_well()
    with pytest.raises(CoreError):
        breaker.admit()


def test_its_changes_are_logged(opened: CircuitBreaker, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        opened.succeeded()
    assert "open -> closed" in caplog.text
