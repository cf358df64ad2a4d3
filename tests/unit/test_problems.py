"""Errors as HTTP tells them: the table is whole, and no address of a server goes out."""

import msgspec
import pytest

from aios_broker.contract.errors import (
    DatabaseUnavailable,
    KernelError,
    QueueFull,
    RedisUnavailable,
    Unauthenticated,
    Unavailable,
    all_errors,
)
from aios_kernel_api.problems import PROBLEM_TYPE, STATUS, Problem, problem, status_of, told

ALL = sorted(all_errors().items())


def test_each_error_has_a_status_of_its_own_and_nothing_else_has() -> None:
    assert set(STATUS) == set(all_errors().values())
    assert all(400 <= status <= 599 for status in STATUS.values())


@pytest.mark.parametrize(("code", "error"), ALL)
def test_a_problem_says_all_that_the_error_does(code: str, error: type[KernelError]) -> None:
    made = error("why", field="body.n", remedy="do", retry_after_s=2.5, syscall_id="0" * 32)
    answer = problem(made)
    found = msgspec.json.decode(answer.body, type=Problem)

    assert (answer.status_code, answer.media_type) == (STATUS[error], PROBLEM_TYPE)
    assert answer.headers["retry-after"] == "3"
    assert (found.code, found.detail, found.status) == (code, "why", STATUS[error])
    assert (found.field, found.remedy, found.retry_after_s) == ("body.n", "do", 2.5)
    assert (found.retryable, found.syscall_id) == (error.retryable, "0" * 32)


def test_what_passes_says_when_to_come_again() -> None:
    assert problem(RedisUnavailable("gone")).headers["retry-after"] == "1"
    assert problem(QueueFull("full")).headers["retry-after"] == "1"
    assert "retry-after" not in problem(KernelError("no")).headers


def test_who_is_not_known_is_asked_for_a_token() -> None:
    assert problem(Unauthenticated("who?")).headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("error", [RedisUnavailable, DatabaseUnavailable, Unavailable])
def test_no_address_of_a_server_is_told(error: type[KernelError]) -> None:
    made = error(
        "no Redis at redis://10.1.2.3:6379: refused",
        field="AIOS_REDIS_URL",
        remedy="start redis://10.1.2.3",
        retry_after_s=4.0,
    )
    answer = problem(told(made))
    assert b"10.1.2.3" not in answer.body
    assert b"AIOS_" not in answer.body
    assert answer.status_code == status_of(made) == 503
    assert answer.headers["retry-after"] == "4"
