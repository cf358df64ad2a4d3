"""The A2A door without a kernel: what an answer says, and how errors are told."""

import msgspec
import pytest

from aios_broker.contract.errors import InvalidSyscall, KernelError, RedisUnavailable, all_errors
from aios_kernel_api.a2a.messages import TaskAnswer, answer_of, body_of
from aios_kernel_api.a2a.model import Message, Part
from aios_kernel_api.a2a.refusals import (
    INTERNAL,
    INVALID_PARAMS,
    REFUSED,
    Refusal,
    RpcFailure,
    rpc_error,
    rpc_error_of,
)
from aios_kernel_api.config import ApiConfig
from aios_kernel_api.problems import status_of, told

ALL = sorted(all_errors().items())


def saying(*parts: Part) -> Message:
    return Message("m", "ROLE_USER", parts)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("approve", TaskAnswer("approve")),
        (" Approve.\n", TaskAnswer("approve")),
        ("deny", TaskAnswer("deny")),
        ("Deny: it is Friday.", TaskAnswer("deny", "it is Friday.")),
        ("deny\nnot today, not tomorrow", TaskAnswer("deny", "not today, not tomorrow")),
    ],
)
def test_words_that_decide(words: str, answer: TaskAnswer) -> None:
    assert answer_of(saying(Part(text=words))) == answer


@pytest.mark.parametrize(
    "words",
    ["", "yes", "approved", "approve?no", "approve the first", "denying", "do not approve"],
)
def test_words_that_decide_nothing(words: str) -> None:
    with pytest.raises(InvalidSyscall, match="decides nothing"):
        answer_of(saying(Part(text=words)))


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"decision": "maybe"},
        {"decision": "approve", "argument": {}},
        {"decision": "approve", "arguments": []},
        {"decision": "deny", "reason": "x" * 2_001},
        "approve",
        ["approve"],
    ],
)
def test_data_that_decides_nothing(data: object) -> None:
    with pytest.raises(InvalidSyscall, match="decides nothing"):
        answer_of(saying(Part(data=data)))


def test_data_may_change_the_arguments() -> None:
    data = {"decision": "approve", "arguments": {"path": "b"}}
    assert answer_of(saying(Part(data=data))) == TaskAnswer("approve", "", {"path": "b"})


def test_whole_numbers_of_protobuf_are_integers() -> None:
    data = {"type": "llm.chat", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4.0}
    body = body_of(saying(Part(data=data)), "a2a/x", None, 16)
    assert msgspec.to_builtins(body)["max_tokens"] == 4


def test_texts_are_one_turn_and_are_read_in_time() -> None:
    body = body_of(saying(Part(text="one"), Part(text="two")), "a2a/x", None, 16)
    assert list(msgspec.to_builtins(body)["messages"]) == [{"role": "user", "content": "one\ntwo"}]
    with pytest.raises(InvalidSyscall):
        answer_of(saying(Part(text="approve " + " " * 1_000_000 + "x")))


@pytest.mark.parametrize(("code", "kind"), ALL)
def test_each_error_of_the_kernel_has_a_code(code: str, kind: type[KernelError]) -> None:
    error = kind("why", field="body.n", remedy="do", retry_after_s=2.5, syscall_id="0" * 32)
    found = rpc_error_of(error)

    if code == "unknown-syscall":
        assert (found.code, found.data[0]["reason"]) == (-32001, "TASK_NOT_FOUND")
        return
    expected = INTERNAL if status_of(error) >= 500 else found.code
    assert found.code in (expected, INVALID_PARAMS, REFUSED)
    assert found.data[0]["reason"] == code.upper().replace("-", "_")
    said = found.data[0]["metadata"]
    assert (said["field"], said["remedy"], said["retryAfterS"]) == ("body.n", "do", "2.5")
    assert found.data[1]["fieldViolations"][0]["field"] == "body.n"


def test_no_address_of_a_server_is_told() -> None:
    error = RedisUnavailable("no Redis at 10.1.2.3", remedy="start 10.1.2.3")
    answer = rpc_error(told(error))

    assert b"10.1.2.3" not in answer.body
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert msgspec.json.decode(answer.body, type=RpcFailure).error.code == INTERNAL


def test_a_refusal_can_be_raised_and_raised_again() -> None:
    refusal = Refusal("TASK_NOT_FOUND", "no")
    with pytest.raises(Refusal) as caught:
        raise refusal
    assert {caught.value: 1}[refusal] == 1


@pytest.mark.parametrize("url", ["agents.example.org", "ftp://x", "https://x/?a=1"])
def test_a_public_address_is_one_of_a_server(url: str) -> None:
    environ = {"AIOS_REDIS_URL": "redis://x:1", "AIOS_API_PUBLIC_URL": url}
    with pytest.raises(KernelError) as caught:
        ApiConfig.from_environment(environ)
    assert caught.value.field == "AIOS_API_PUBLIC_URL"
