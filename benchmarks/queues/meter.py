"""What a load cost: processor time by process, Redis commands, socket reads. From outside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import redis

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
OWN_COMMANDS = frozenset({"cmdstat_info"})  # those that this meter sends itself


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters at one moment."""

    cpu_s: dict[str, float]  # by process; `redis` among them
    calls: dict[str, int]  # by command; those inside functions and transactions count, too
    reads: int  # of Redis from its sockets: about one per round trip

    @property
    def commands(self) -> int:
        """All commands together."""
        return sum(self.calls.values())

    def since(self, before: Reading) -> Reading:
        """Return what was used between two readings."""
        return Reading(
            {name: cpu_s - before.cpu_s[name] for name, cpu_s in self.cpu_s.items()},
            {name: calls - before.calls.get(name, 0) for name, calls in self.calls.items()},
            self.reads - before.reads,
        )


class Meter:
    """Reads the counters of some process trees and of the Redis that they share."""

    def __init__(self, client: redis.Redis, trees: Mapping[str, int]) -> None:
        self._redis = client
        self._trees = trees  # name -> process id of the root

    def read(self) -> Reading:
        """Read all counters. The processes must be quiet, or this is a moment in the middle."""
        info = self._redis.info("all")
        cpu_s = {name: tree_cpu_s(pid) for name, pid in self._trees.items()}
        cpu_s["redis"] = info["used_cpu_sys"] + info["used_cpu_user"]
        calls = {
            name.removeprefix("cmdstat_"): row["calls"]
            for name, row in info.items()
            if name.startswith("cmdstat_") and name not in OWN_COMMANDS
        }
        # This INFO is one read: taken off, so that a pair of readings costs nothing.
        return Reading(cpu_s, calls, info["total_reads_processed"] - _own_reads(info))


def _own_reads(info: Mapping[str, dict[str, int]]) -> int:
    return sum(info.get(name, {"calls": 0})["calls"] for name in OWN_COMMANDS)


def tree_cpu_s(pid: int) -> float:
    """Return the processor time of a process and of all that it started, the dead included."""
    parents: dict[int, int] = {}
    times: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(entry)):
            number = int(entry.name)
            parents[number] = int(fields[1])
            times[number] = sum(map(int, fields[11:15]))  # own, and children that were waited for
    return sum(times[one] for one in _family(pid, parents) if one in times) / TICKS_PER_S


def tree_pss_bytes(pid: int) -> int:
    """Return the memory of a process tree, shared pages counted in proportion (PSS)."""
    parents = {
        int(entry.name): int(fields[1])
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (fields := _stat(entry))
    }
    return sum(_pss_bytes(one) for one in _family(pid, parents))


def _family(pid: int, parents: Mapping[int, int]) -> list[int]:
    family = [pid]
    for one in family:  # grows while it is walked
        family += [child for child, parent in parents.items() if parent == one]
    return family


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _stat(folder: Path) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name; none of a process that has gone."""
    try:
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
