"""The circuit breaker: opens after failures in a window, and lets requests through after a rest."""

import pytest

from aios_broker.contract.errors import CoreError
from aios_workers.llm.cores.base_core import CircuitBreaker, FailureLimit

LIMIT = FailureLimit(failures=3, window_s=10.0, rest_s=5.0)


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
    breaker = CircuitBreaker("the server", LIMIT, clock)
    for _ in range(3):
        breaker.check()
        breaker.failed()
    return breaker


def test_it_opens_after_failures_within_the_window(opened: CircuitBreaker, clock: Clock) -> None:
    clock.now_s += 2.0
    with pytest.raises(CoreError, match="failed 3 times within 10 s") as caught:
        opened.check()
    assert caught.value.retry_after_s == pytest.approx(3.0)


def test_failures_far_apart_do_not_open_it(clock: Clock) -> None:
    breaker = CircuitBreaker("the server", LIMIT, clock)
    for _ in range(20):
        breaker.failed()
        clock.now_s += 5.1
    breaker.check()


def test_a_success_forgets_the_failures_before_it(clock: Clock) -> None:
    breaker = CircuitBreaker("the server", LIMIT, clock)
    for _ in range(9):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    breaker.check()


def test_after_its_rest_one_failure_opens_it_again(opened: CircuitBreaker, clock: Clock) -> None:
    clock.now_s += 5.0
    opened.check()
    opened.failed()
    with pytest.raises(CoreError):
        opened.check()
    clock.now_s += 5.0
    opened.check()
    opened.succeeded()
    opened.failed()
    opened.check()


def test_failures_before_the_window_do_not_open_it_again(
    opened: CircuitBreaker, clock: Clock
) -> None:
    clock.now_s += 10.1
    opened.failed()
    opened.check()


def test_its_changes_are_logged(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    breaker = CircuitBreaker("the server", LIMIT, clock)
    with caplog.at_level("INFO"):
        breaker.succeeded()
        assert not caplog.messages
        for _ in range(3):
            breaker.failed()
        breaker.succeeded()
    assert caplog.messages == ["the server is left alone for 5 s", "the server does its work again"]
