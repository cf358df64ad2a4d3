"""Whatever cores come and go, each syscall stands in one queue and is answered once."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.examples import AT_MUTANTS, PHASES, SAME_EACH_TIME
from tests.routing_machine import RoutingMachine


@pytest.mark.timeout(240)  # 15 s of work, on a machine that has more to do
def test_no_order_of_steps_loses_or_doubles_or_misplaces_a_syscall(redis_url: str) -> None:
    RoutingMachine.url = redis_url
    run_state_machine_as_test(
        RoutingMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=SAME_EACH_TIME,
            database=None,
            phases=PHASES,
            report_multiple_bugs=not AT_MUTANTS,
            suppress_health_check=list(HealthCheck),
        ),
    )
