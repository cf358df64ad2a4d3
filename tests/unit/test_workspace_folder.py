"""A session's folder is looked at and put back without leaving it, whoever swaps what is in it.

The swaps are done at the very moment between a look and an open, which a race would have to hit.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from aios_broker.contract.errors import WorkspaceLimit
from aios_workers.modules.tool.workspace import walk
from aios_workers.modules.tool.workspace.folder import clear, put, take
from aios_workers.modules.tool.workspace.walk import FoundFile, Walk

SECRET = b"TOP SECRET"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root, outside):
        folder.mkdir()
    (outside / "secret").write_bytes(SECRET)
    return root


@pytest.fixture
def outside(root: Path) -> Path:
    return root.parent / "outside"


def looked(root: Path, **known: bytes) -> list[FoundFile]:
    sizes = {path: len(content) for path, content in known.items()}
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in known.items()}
    return Walk(sizes, digests, 100, 1_000).at(root)


def why(found: list[FoundFile]) -> dict[str, str]:
    return {one.path: one.why for one in found}


def swapped(monkeypatch: pytest.MonkeyPatch, name: str, swap: Callable[[], object]) -> None:
    """Have something swapped as soon as `name` has been looked at, and before it is opened."""
    look = os.stat

    def looks(
        path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        found = look(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        if path == name:
            monkeypatch.setattr(os, "stat", look)
            swap()
        return found

    monkeypatch.setattr(os, "stat", looks)


def test_a_file_that_becomes_a_link_meanwhile_is_not_followed(
    root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "f").write_text("mine")

    def swap() -> None:
        (root / "f").unlink()
        (root / "f").symlink_to(outside / "secret")

    swapped(monkeypatch, "f", swap)
    [one] = looked(root)

    assert (one.why, one.sha256, one.content) == ("somebody changes the folder meanwhile", "", None)


def test_a_folder_that_becomes_a_link_meanwhile_is_not_entered(
    root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "d").mkdir()

    def swap() -> None:
        (root / "d").rmdir()
        (root / "d").symlink_to(outside)

    swapped(monkeypatch, "d", swap)

    assert why(looked(root)) == {"d": "somebody changes the folder meanwhile"}


def test_a_file_that_becomes_a_pipe_meanwhile_keeps_nobody_waiting(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "f").write_text("mine")

    def swap() -> None:
        (root / "f").unlink()
        os.mkfifo(root / "f")

    swapped(monkeypatch, "f", swap)

    assert why(looked(root)) == {"f": "it is a pipe"}


def test_content_decides_and_no_time_stamp(root: Path) -> None:
    (root / "f").write_text("one")
    before = (root / "f").stat()
    (root / "f").write_text("two")
    os.utime(root / "f", ns=(before.st_atime_ns, before.st_mtime_ns))

    assert [one.content for one in looked(root, f=b"one")] == [b"two"]
    assert [one.content for one in looked(root, f=b"two")] == [None]


def test_what_is_no_file_is_told_in_words(root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "link").symlink_to("f")
    (root / "f").write_text("f")
    os.link(root / "f", root / "g")
    (root / "s").write_text("s")
    (root / "s").chmod(0o4755)
    (root / "a\u200b").mkdir()
    (root / "a\u200b" / "f").write_text("f")

    assert {path: bool(reason) for path, reason in why(looked(root)).items()} == dict.fromkeys(
        ("pipe", "link", "f", "g", "s", "a\u200b"), True
    )


def test_a_sparse_file_is_not_read(root: Path) -> None:
    with (root / "large").open("wb") as file:
        file.truncate(1 << 40)

    [one] = looked(root)
    assert (one.size_bytes, one.sha256, one.why) == (1 << 40, "", "")


def test_more_files_than_a_look_takes_in_are_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "MOST_SEEN", 5)
    for number in range(6):
        (root / str(number)).touch()
    with pytest.raises(WorkspaceLimit, match="more than 5 files"):
        looked(root)


def test_what_is_put_back_goes_through_no_link(root: Path, outside: Path) -> None:
    (root / "d").symlink_to(outside)
    (root / "f").symlink_to(outside / "secret")
    (root / "e").mkdir()
    (root / "e" / "in").write_text("in the way")

    put(root, "d/secret", b"mine")
    put(root, "f", b"mine")
    put(root, "e", b"mine")

    assert (outside / "secret").read_bytes() == SECRET
    assert [(root / name).read_bytes() for name in ("d/secret", "f", "e")] == [b"mine"] * 3
    assert not (root / "d").is_symlink()
    assert sorted(os.listdir(root)) == ["d", "e", "f"]


def test_what_is_taken_away_is_taken_through_no_link(root: Path, outside: Path) -> None:
    (root / "d").symlink_to(outside)
    (root / "e").mkdir()
    (root / "e" / "inner").symlink_to(outside)

    take(root, "d/secret")
    take(root, "d")
    take(root, "e")

    assert (outside / "secret").read_bytes() == SECRET
    assert os.listdir(root) == []


def test_folders_that_are_left_empty_go_and_others_stay(root: Path) -> None:
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "a" / "kept").touch()
    (root / "a" / "b" / "c" / "f").touch()

    take(root, "a/b/c/f")

    assert sorted(os.listdir(root / "a")) == ["kept"]


def test_a_folder_of_any_depth_and_rights_is_taken_away(root: Path) -> None:
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(2_000):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    os.fchmod(at, 0)
    os.close(at)
    (root / "closed").mkdir(mode=0)

    clear(root)

    assert os.listdir(root) == []
    assert stat.S_ISDIR(root.stat().st_mode)
