"""Whatever happens, under whatever policy: each job has its score, and stands where it belongs."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from aios_broker.scheduler import ordering, ranking, sweep
from tests.examples import AT_MUTANTS, PHASES, SAME_EACH_TIME
from tests.ordering_machine import OrderingMachine


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every queue is ranked as a whole, and all that has moved at once."""
    monkeypatch.setattr(ordering, "POLICY_EVERY_S", 0.0)


@pytest.fixture
def long(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly every queue is a long one, and everything is done in small parts."""
    monkeypatch.setattr(ordering, "WHOLE_QUEUE", 3)
    monkeypatch.setattr(ordering, "END", 2)
    monkeypatch.setattr(ordering, "SLACK", 1)
    monkeypatch.setattr(ordering, "WHOLE_EVERY_S", 0.0)
    monkeypatch.setattr(ordering, "WHOLE_SHARE", 1e9)
    monkeypatch.setattr(sweep, "PIECE", 4)
    monkeypatch.setattr(sweep, "METADATA_AT_ONCE", 3)
    monkeypatch.setattr(ranking, "RESCORED", 2)
    monkeypatch.setattr(ranking, "HEAD", 2)


@pytest.mark.timeout(240)  # some 20 s of work each, on a machine that has more to do
@pytest.mark.parametrize("queue", ["short", "long"])
def test_every_job_stands_where_its_policy_wants_it(
    redis_url: str, queue: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(queue)
    OrderingMachine.url = redis_url
    run_state_machine_as_test(
        OrderingMachine,
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            derandomize=SAME_EACH_TIME,
            database=None,
            phases=PHASES,
            report_multiple_bugs=not AT_MUTANTS,
            suppress_health_check=list(HealthCheck),
        ),
    )
