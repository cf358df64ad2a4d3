"""What tools leave is looked at and removed, however deep it is, and whatever rights it has."""

import os
from pathlib import Path

import pytest

from aios_workers.modules.tool.made_files import MOST_DEEP, is_too_large, made_files
from aios_workers.modules.tool.removal import remove_tree

DEEP = 3_000  # folders: Python's own ways go down a call for each


def deepen(folder: Path, count: int) -> None:
    """Make folders in each other, as a tool does: one at a time, from where it is."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        for _ in range(count):
            os.mkdir("d")
            os.chdir("d")
        Path("deep.txt").write_text("deep")
    finally:
        os.fchdir(here)
        os.close(here)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    return folder


def test_folders_that_lie_too_deep_are_seen_and_removed(work: Path) -> None:
    deepen(work, DEEP)

    assert is_too_large(work, 1 << 30)
    assert [file.path for file in made_files(work)] == ["a.txt"]
    remove_tree(work)
    assert not work.exists()


def test_what_lies_as_deep_as_it_may_is_told(work: Path) -> None:
    deepen(work, MOST_DEEP)

    assert not is_too_large(work, 1 << 30)
    assert [file.path for file in made_files(work)] == ["a.txt", "d/" * MOST_DEEP + "deep.txt"]


def test_folders_without_rights_are_removed(work: Path) -> None:
    (work / "closed").mkdir()
    (work / "closed" / "b.txt").write_text("b")
    (work / "closed").chmod(0)

    remove_tree(work)

    assert not work.exists()
