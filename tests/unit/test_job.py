"""Job data: what is ours is read, what is foreign is never more than bytes."""

import json
import pickle
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.access import AccessRegister, TokenIssued
from aios_broker.contract.errors import ForeignJob, InvalidSyscall, UnsupportedVersion
from aios_broker.contract.job import (
    ENTRY,
    MAX_JOB_BYTES,
    decode_job,
    encode_job,
    syscall_id_of,
    with_token,
)
from aios_broker.contract.syscall import Syscall, ToolEcho, new_id
from aios_broker.contract.tokens import digest

UUID = "7d4b0f4e-54f1-4f0c-9d7c-0a3f8f1f2b6e"


def test_no_token_is_queued_or_shown() -> None:
    body = AccessRegister("bob", token="aios_s3cret")
    syscall = Syscall("0" * 32, "ada", body, token="aios_s3cret")
    queued = encode_job(syscall)
    assert b"s3cret" not in queued
    assert digest("aios_s3cret").encode() in queued
    assert "s3cret" not in repr((syscall, body, decode_job(queued, "0" * 32)))
    assert "agent='bob'" in repr(syscall)
    assert with_token(syscall, TokenIssued("bob")) == TokenIssued("bob", "aios_s3cret")


def echo(**fields: object) -> dict[str, object]:
    return {"agent": "ada", "body": {"type": "tool.echo", "text": "hi"}, **fields}


def call(*arguments: object, function: str = ENTRY) -> bytes:
    return json.dumps([function, None, list(arguments), {}]).encode()


def test_a_syscall_comes_back_from_its_job() -> None:
    syscall = Syscall(new_id(), "ada", ToolEcho("grüße"), nice=3)

    assert decode_job(encode_job(syscall), syscall.id) == syscall
    assert json.loads(encode_job(syscall))[0] == ENTRY


def test_compressed_data_is_read_as_rq_writes_it() -> None:
    syscall = Syscall(new_id(), "ada", ToolEcho("hi"))

    assert decode_job(zlib.compress(encode_job(syscall)), syscall.id) == syscall


def test_a_stock_producer_needs_no_id() -> None:
    syscall = decode_job(call(echo(token="t")), UUID, trusted=False)

    assert (syscall.id, syscall.token) == (UUID.replace("-", ""), "t")


def test_an_id_in_a_stock_producers_request_does_not_count() -> None:
    other = new_id()

    assert decode_job(call(echo(id=other)), UUID, trusted=False).id != other


@pytest.mark.parametrize("job_id", ["nightly-report", "", "ABC", UUID.upper()])
def test_any_job_id_stands_for_one_syscall_id(job_id: str) -> None:
    assert syscall_id_of(job_id) == syscall_id_of(job_id)
    assert len(syscall_id_of(job_id)) == 32


@pytest.mark.parametrize(
    "data",
    [
        call("id -un", function="os.system"),
        call("id -un", function="subprocess.getoutput"),
        call(echo(), function=ENTRY + "2"),
        pickle.dumps(("os.system", None, ("true",), {})),
        zlib.compress(call("id", function="subprocess.getoutput")),
        b"",
        b"[]",
        b"\xff\xfe",
        json.dumps([ENTRY, "instance", [], {}]).encode(),
        b"[" * 100_000,
    ],
)
def test_a_foreign_job_is_refused(data: bytes) -> None:
    with pytest.raises(ForeignJob) as caught:
        decode_job(data, UUID, trusted=False)

    assert caught.value.remedy is not None


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize(
    "data",
    [
        call(),
        call(echo(), echo()),
        call("text"),
        call({"agent": "ada", "body": 3}),
        json.dumps([ENTRY, None, [echo()], {"x": 1}]).encode(),
    ],
)
def test_our_entry_with_wrong_arguments_is_invalid(data: bytes, *, trusted: bool) -> None:
    with pytest.raises(InvalidSyscall):
        decode_job(data, UUID, trusted=trusted)


def test_a_trusted_job_under_another_id_is_invalid() -> None:
    with pytest.raises(InvalidSyscall, match="carries syscall"):
        decode_job(encode_job(Syscall(new_id(), "ada", ToolEcho())), new_id())


def test_another_version_is_named() -> None:
    with pytest.raises(UnsupportedVersion):
        decode_job(call(echo(version=3, novelty=True)), UUID, trusted=False)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zlib.compress(b"[" + b" " * (MAX_JOB_BYTES + 1))

    with pytest.raises(InvalidSyscall, match="unpacked"):
        decode_job(bomb, UUID)


def test_one_of_our_entry_that_no_other_process_could_read_is_foreign() -> None:
    deep = json.dumps([ENTRY, None, [{**echo(), "x": 0}], {}]).replace("0", "[" * 200 + "]" * 200)
    with pytest.raises(ForeignJob, match="nested deeper than any syscall"):
        decode_job(deep.encode(), UUID, trusted=False)


def test_one_that_would_hold_its_readers_loop_is_foreign() -> None:
    wide = json.dumps([ENTRY, None, [{**echo(), "x": 0}], {}]).replace(
        "0}", f"[{'[],' * 100_001}0]}}"
    )
    with pytest.raises(ForeignJob, match="more values than any syscall"):
        decode_job(wide.encode(), UUID, trusted=False)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    with pytest.raises((ForeignJob, InvalidSyscall)):
        decode_job(data, UUID, trusted=False)
