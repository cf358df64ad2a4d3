"""What `aios setup` installs is what the lock file names and what the workers load."""

from pathlib import Path

import pytest

import aios_broker
from aios_workers.model_files import MODEL_FILES, SMOLLM2, ModelFile

LOCK = Path(aios_broker.__file__).parents[2] / "requirements-models.lock"


@pytest.mark.parametrize("file", MODEL_FILES, ids=lambda file: file.package)
def test_the_pin_is_that_of_the_lock_file(file: ModelFile) -> None:
    locked = LOCK.read_text()
    assert f"{file.requirement} " in locked
    assert all(f"--hash=sha256:{one}" in locked for one in file.hashes)


@pytest.mark.parametrize("file", MODEL_FILES, ids=lambda file: file.package)
def test_what_is_installed_is_what_was_published(file: ModelFile) -> None:
    path = file.find()
    assert path is not None
    assert file.is_whole(path)


def test_a_damaged_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"not the weights")
    assert not SMOLLM2.is_whole(path)
