"""What `aios bench chaos` does: run, print, keep the logs of a run that broke a promise."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.chaos.report import figures, lines
from benchmarks.chaos.run import ROOT, Wish, run_chaos


def run(wish: Wish, environment: Mapping[str, str], json_path: Path | None) -> bool:
    """Run the chaos; return whether every promise was kept."""
    folder = Path(tempfile.mkdtemp(prefix="aios-chaos-"))
    print(f"{wish.length_s:g} s of {', '.join(wish.groups)}; seed {wish.seed}", flush=True)
    outcome = run_chaos(wish, folder, environment)
    report = figures(outcome, date=datetime.now(UTC).isoformat(timespec="seconds"), commit=commit())
    for line in lines(report):
        print(line)
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=2) + "\n")
    if outcome.broken:
        print(f"the logs are in {folder}; again: --seed {wish.seed}")
    else:
        shutil.rmtree(folder)
    return not outcome.broken


def commit() -> str:
    """Return the checkout's commit, or `-`."""
    git = ("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12")
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "-"
