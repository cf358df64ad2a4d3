"""Where and when a measurement was made, and of which commit."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the checkout


def today() -> str:
    """Return the date and the time of day, in UTC, to the minute."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def commit_of(checkout: Path) -> str:
    """Return the short hash of the checkout's commit, with `+changes` where files differ."""
    commit = _git(checkout, "rev-parse", "--short=10", "HEAD")
    if commit is None:
        return "unknown"
    changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if changed else commit


def _git(checkout: Path, *arguments: str) -> str | None:
    try:
        told = subprocess.run(
            ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return told.stdout.strip() if told.returncode == 0 else None
