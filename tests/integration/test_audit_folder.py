"""The folder of the audit log: its key, and the newest line that was seen."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aios_broker.audit_folder import AuditFolder, NotedLine
from aios_broker.contract.errors import InvalidConfig


@pytest.fixture
def folder(tmp_path: Path) -> AuditFolder:
    return AuditFolder(tmp_path / "audit")


def test_a_key_is_made_once_and_for_its_owner_alone(folder: AuditFolder) -> None:
    assert folder.key() is None
    with ThreadPoolExecutor(8) as pool:
        keys = {pool.submit(folder.made_key).result() for _ in range(16)}
    assert keys == {folder.key()}
    [key] = keys
    assert key is not None
    assert len(key) == 32
    assert [path.name for path in folder.path.iterdir()] == ["key"]
    assert (folder.path / "key").stat().st_mode & 0o077 == 0
    assert folder.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", ["", "00ff", "no hex", "ff" * 33])
def test_a_key_that_is_none_is_refused(folder: AuditFolder, content: str) -> None:
    folder.path.mkdir()
    (folder.path / "key").write_text(content)
    with pytest.raises(InvalidConfig) as caught:
        folder.made_key()
    assert caught.value.field == "AIOS_AUDIT_DIR"


def test_only_a_newer_line_is_noted(folder: AuditFolder) -> None:
    folder.made_key()
    for seq in (3, 7, 5):
        folder.note(NotedLine(seq, f"{seq}", 0.0))
    assert folder.noted() == NotedLine(7, "7", 0.0)
    folder.forget()
    assert folder.noted() is None
