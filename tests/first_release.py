"""A client, a worker and a scheduler of the first release, by the calls that its processes made.

Its function library is kept as it was (tests/data/release1); what its processes sent to it and
how they read and wrote payloads stands here, apart from the code that has changed since.
"""

from __future__ import annotations

import json
import struct
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import redis

LIBRARY = Path(__file__).with_name("data") / "release1" / "aios1.lua"
NOW = "2026-07-01T12:00:00.000000Z"
ENTRY = "aios_workers.entry.syscall"
CALLS = {"llm.chat", "tool.echo"}  # all that it could do
_numbers = iter(range(1, 1_000_000))


@dataclass(frozen=True, slots=True)
class OldLease:
    job_id: str
    attempt: int
    syscall: dict[str, object]
    suspensions: int


class FirstRelease:
    """One process of the first release, on one module."""

    def __init__(self, url: str, module: str = "tool") -> None:
        self.name = f"old-{next(_numbers)}"
        self._redis = redis.Redis.from_url(url)
        self._module = module
        self._redis.function_load(LIBRARY.read_text(), replace=True)

    def close(self) -> None:
        self._redis.close()

    def _call(self, step: str, *arguments: object) -> list[object]:
        answer = self._redis.fcall(
            f"aios1_{step}", 1, f"rq:queue:{self._module}", "rq", self._module, *arguments
        )
        return answer if isinstance(answer, list) else [answer]

    # A client.

    def submit(self, *bodies: dict[str, object], deadline_s: float = 60.0) -> list[str]:
        """Submit syscalls of contract version 1; return their ids."""
        ids: list[str] = []
        arguments: list[object] = []
        for body in bodies:
            syscall_id = f"{next(_numbers):032x}"
            syscall = {"id": syscall_id, "agent": "ada", "body": body, "deadline_s": deadline_s}
            data = json.dumps([ENTRY, None, [syscall], {}])
            metadata = json.dumps({"agent": "ada", "kind": body["type"]})
            arguments += [
                syscall_id,
                data,
                "old",
                metadata,
                "",
                self.name,
                round(deadline_s * 1000),
            ]
            ids.append(syscall_id)
        assert self._call("submit", NOW, len(bodies), *arguments) == [1] * len(bodies)
        return ids

    def heard(self) -> list[dict[str, object]]:
        """Take the replies that have come."""
        taken = self._redis.lpop(f"rq:aios:reply:{self.name}", 1000)
        messages = [json.loads(each) for each in taken] if isinstance(taken, list) else []
        return [message for message in messages if message["kind"] == "reply"]

    # A worker.

    def claim(self, want: int, *, lease_s: float = 30.0, cores: str = "") -> list[OldLease]:
        rows = self._call("claim", self.name, NOW, want, round(lease_s * 1000), cores)
        return [_lease(row) for row in rows if isinstance(row, list)]

    def answer(self, *leases: OldLease) -> list[bool]:
        """Answer as it did: echo, and what it could not read by a typed error."""
        arguments: list[object] = []
        for lease in leases:
            reply: dict[str, object] = {"kind": "reply", "id": lease.job_id, "worker": self.name}
            refusal = _refusal(lease.syscall)
            reply |= {"error": refusal} if refusal else {"result": _result(lease.syscall)}
            arguments += [
                lease.job_id,
                lease.attempt,
                "failed" if refusal else "finished",
                json.dumps(reply),
                b"result",
                1,
                0,
                0,
            ]
        accepted, _ = self._call(
            "finish", self.name, NOW, 0, 1_000, "", 60, 3_600, 0, len(leases), *arguments
        )
        assert isinstance(accepted, list)
        return [flag == 1 for flag in accepted]

    def suspend(self, lease: OldLease, snapshot: bytes, tokens: int) -> bool:
        accepted, _ = self._call(
            "yield",
            self.name,
            NOW,
            0,
            1_000,
            "",
            1,
            lease.job_id,
            lease.attempt,
            "yield",
            snapshot,
            1,
            tokens,
        )
        return accepted == [1]

    # A scheduler.

    def lead(self, lease_s: float) -> tuple[int, bool]:
        epoch, leading, *_ = self._call("lead", self.name, round(lease_s * 1000))
        assert isinstance(epoch, int)
        return epoch, leading == 1

    def reclaim(self, epoch: int) -> int:
        error = json.dumps({"code": "worker-lost", "message": "its workers died"})
        [count] = self._call("reclaim", epoch, error, 100)
        assert isinstance(count, int)
        return count

    def reorder(self, epoch: int, ids: Sequence[str]) -> bool:
        ranked = [part for score, each in enumerate(ids) for part in (each, score)]
        return self._call("reorder", epoch, 0, 0, len(ids), *ranked) == [1]


def first_snapshot(
    model: str, prompt_ids: Sequence[int], output_ids: Sequence[int], seed: int
) -> bytes:
    """Return a snapshot as it wrote them: version 1."""
    packed = ["token", model, _ids(prompt_ids), _ids(output_ids), seed, 0]
    body = zlib.compress(msgspec.msgpack.encode(packed), 1)
    return struct.pack(">4sBI", b"AIOS", 1, zlib.crc32(body)) + body


def _ids(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()  # little-endian, as all machines that it ran on


def _lease(row: list[object]) -> OldLease:
    job_id, attempt, data, _, _, _, _, _, suspensions, *_rest = row
    assert isinstance(job_id, bytes)
    assert isinstance(attempt, int)
    assert isinstance(data, bytes)
    assert isinstance(suspensions, int)
    return OldLease(job_id.decode(), attempt, json.loads(data)[2][0], suspensions)


def _refusal(syscall: dict[str, object]) -> dict[str, object] | None:
    if syscall.get("version", 1) == 1:
        return None
    return {
        "code": "unsupported-version",
        "field": "version",
        "message": f"this kernel reads version 1 of the contract, not {syscall['version']!r}",
    }


def _result(syscall: dict[str, object]) -> dict[str, object]:
    body = syscall["body"]
    assert isinstance(body, dict)
    assert body["type"] in CALLS
    return {"type": "tool.echo", "text": body["text"]}
