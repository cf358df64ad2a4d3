"""How much of the processors other programs of the machine took while something was measured."""

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
IDLE = (3, 4)  # of the first line of /proc/stat: idle, and waiting for a disk
COUNTED = 8  # its columns but for guests, which are counted among user's


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """What the processors have done since the machine's start, in ticks."""

    all: int
    busy: int
    ours: int  # of this process and all below it


def cpu_times() -> CpuTimes | None:
    """Return what the processors have done so far; None where the system does not tell."""
    try:
        ticks = [int(each) for each in (PROC / "stat").read_text().split("\n")[0].split()[1:]]
    except (OSError, ValueError):
        return None
    counted = ticks[:COUNTED]
    busy = sum(counted) - sum(counted[place] for place in IDLE)
    return CpuTimes(sum(counted), busy, _ours())


def others_share(before: CpuTimes | None, after: CpuTimes | None) -> float | None:
    """Return which part of all processors other programs took between two moments, 0 to 1."""
    if before is None or after is None or after.all <= before.all:
        return None
    others = (after.busy - before.busy) - (after.ours - before.ours)
    return min(1.0, max(0.0, others / (after.all - before.all)))


def _ours() -> int:
    """Return the ticks of this process and of all below it, those of ended children included."""
    used: dict[int, int] = {}
    parents: dict[int, int] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                # The name of a program, in brackets, may have blanks and brackets itself.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = sum(map(int, fields[11:15]))
    return sum(ticks for pid, ticks in used.items() if _is_below(pid, os.getpid(), parents))


def _is_below(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid not in (0, root):
        pid = parents.get(pid, 0)
    return pid == root
