"""What a check has found so far: in a file that is written anew with each finding."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.provenance import ROOT, commit_of, today

_BEGAN_S = time.monotonic()


def say(text: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.monotonic() - _BEGAN_S:6.1f} s] {text}", flush=True)


class Results:
    """One part's findings. A run that is stopped still tells what it had."""

    def __init__(self, path: Path, limit_s: float, about: dict[str, object]) -> None:
        self._path = path
        self._until_s = _BEGAN_S + limit_s
        self.found: dict[str, object] = {
            "date": today(),
            "commit": commit_of(ROOT),
            "machine": machine(),
            **about,
        }
        path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def left_s(self) -> float:
        """How much of the time limit is left."""
        return self._until_s - time.monotonic()

    def keep(self, name: str, finding: object) -> None:
        """Write a finding, and all that were there before."""
        self.found[name] = finding
        self._path.write_text(json.dumps(self.found, indent=1, default=str) + "\n")

    def tell(self, name: str, finding: object) -> None:
        """Write a finding and print it."""
        self.keep(name, finding)
        say(f"{name}: {finding}")


def machine() -> str:
    """Return the GPU, the processors and the Python."""
    return f"{_gpu()}; {os.cpu_count()} processors; Python {platform.python_version()}"


def _gpu() -> str:
    query = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return "no GPU"
    return told.stdout.strip() or "no GPU"


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, rounded; None of nothing."""
    return round(statistics.fmean(values), 4) if values else None


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that a share of the values do not exceed; None of nothing."""
    ordered = sorted(values)
    place = max(0, math.ceil(share * len(ordered)) - 1)
    return round(ordered[place], 4) if ordered else None
