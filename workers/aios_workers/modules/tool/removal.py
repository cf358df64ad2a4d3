"""Removes folders in which code of others has worked."""

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

LIMIT_S = 30.0


def remove_tree(folder: Path) -> None:
    """Remove a folder, however deep it is, and whatever rights were taken away; blocks.

    What resists all the same is left, and goes with what the folder lies in.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        for parent, _, _ in os.walk(folder):
            with suppress(OSError):
                os.chmod(parent, 0o700)
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:  # Python goes down a call for each folder
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ("rm", "-rf", "--", str(folder)), check=False, capture_output=True, timeout=LIMIT_S
            )
