"""The filters of system calls, run here as the kernel runs them, for each architecture."""

import errno
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from aios_workers.modules.tool.sandbox.seccomp import (
    AARCH64,
    ARCHITECTURES,
    CLONE3,
    X86_64,
    Architecture,
    filter_here,
    filter_of,
)

ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSED, NO_FAMILY, UNKNOWN = (
    0x00050000 | each for each in (errno.EPERM, errno.EAFNOSUPPORT, errno.ENOSYS)
)
# Calls that every program makes: what is refused must not be one of them.
USUAL: Mapping[str, Mapping[str, int]] = {
    "x86_64": {"read": 0, "write": 1, "mmap": 9, "fork": 57, "execve": 59, "openat": 257},
    "aarch64": {"read": 63, "write": 64, "mmap": 222, "execve": 221, "openat": 56, "futex": 98},
}
# Of the old table of x86 alone: aarch64 has none of these.
OF_X86_ALONE = {"uselib", "modify_ldt", "_sysctl", "iopl", "ioperm"}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),  # aarch64 has the kernel's common table
}


def verdict(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """Run a filter as the kernel does. Source: the kernel's net/core/filter.c, classic BPF."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    lines = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at = value = 0
    while True:
        code, if_true, if_false, constant = lines[at]
        at += 1
        match code:
            case 0x20:
                (value,) = struct.unpack_from("=I", data, constant)
            case 0x15:
                at += if_true if value == constant else if_false
            case 0x35:
                at += if_true if value >= constant else if_false
            case 0x45:
                at += if_true if value & constant else if_false
            case 0x06:
                return int(constant)
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def one(name: str) -> Architecture:
    return ARCHITECTURES[name]


def test_what_is_refused_is_refused_and_what_is_usual_is_not(name: str, one: Architecture) -> None:
    program = filter_of(one)

    def told(number: int, *arguments: int) -> int:
        return verdict(program, one.audit, number, *arguments)

    assert {told(number) for number in one.denied.values()} == {REFUSED}
    assert {told(number) for number in USUAL[name].values()} == {ALLOW}
    assert told(CLONE3) == UNKNOWN
    assert (told(one.clone, 0x01200011), told(one.clone, 0x10000000)) == (ALLOW, REFUSED)
    assert (told(one.ioctl, 0, 0x5401), told(one.ioctl, 0, 0x5412)) == (ALLOW, REFUSED)
    assert {told(one.socket, family) for family in (1, 2, 10, 16)} == {ALLOW}
    assert {told(one.socketpair, family) for family in (17, 38, 40)} == {NO_FAMILY}
    assert told(one.clone, 1 << 32) == ALLOW  # the kernel reads the lower half of an argument


def test_calls_of_another_architecture_end_the_process(one: Architecture) -> None:
    others = {each.audit for each in ARCHITECTURES.values()} - {one.audit}
    i386, arm = 0x40000003, 0x40000028  # what the same processors run as well
    for other in (*others, i386, arm):
        assert verdict(filter_of(one), other, 0) == KILL
    if one.has_x32:
        assert verdict(filter_of(one), one.audit, 0x40000000 | 101) == KILL


def test_both_architectures_refuse_the_same() -> None:
    assert X86_64.denied.keys() - AARCH64.denied.keys() == OF_X86_ALONE
    assert AARCH64.denied.keys() < X86_64.denied.keys()
    newer = {name for name, number in AARCH64.denied.items() if number >= 424}
    assert {name for name in newer if AARCH64.denied[name] != X86_64.denied[name]} == set()


def numbers(header: Path) -> Iterator[tuple[str, int]]:
    """Yield the calls of one of the kernel's own tables."""
    for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()):
        yield name, int(number)


def test_the_numbers_are_those_of_the_kernels_own_tables(name: str, one: Architecture) -> None:
    if not HEADERS[name].exists():
        pytest.skip(f"there is no {HEADERS[name]} to compare with")
    known = dict(numbers(HEADERS[name]))
    asked = {
        **one.denied,
        **USUAL[name],
        "clone": one.clone,
        "ioctl": one.ioctl,
        "clone3": CLONE3,
        "socket": one.socket,
        "socketpair": one.socketpair,
    }
    wrong = {call: number for call, number in asked.items() if known.get(call, number) != number}
    assert wrong == {}
    assert len(known) > 300  # the table was read


@pytest.mark.parametrize(
    ("machine", "expected"), [("x86_64", X86_64), ("aarch64", AARCH64), ("riscv64", None)]
)
def test_each_machine_has_its_own_filter_or_none(
    monkeypatch: pytest.MonkeyPatch, machine: str, expected: Architecture | None
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert filter_here() == (None if expected is None else filter_of(expected))
