"""Removes folders in which code of others has worked."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from aios_workers.modules.tool.workspace.folder import opened_root, take_away


def remove_tree(folder: Path) -> None:
    """Remove a folder, however deep it is, and whatever rights were taken away; blocks.

    Where a link was put in its place, the link is removed, and nothing is followed. What resists
    all the same is left, and goes with what the folder lies in.
    """
    if os.path.lexists(folder):
        remove_below(folder.parent, [folder.name])


def remove_below(parent: Path, names: Iterable[str]) -> None:
    """Remove what is in a folder by these names, as `remove_tree` does; blocks."""
    with suppress(OSError), opened_root(parent) as opened:
        for name in names:
            with suppress(OSError):
                take_away(opened, name)
