"""What `aios setup` installs is what the lock file names and what the worker loads."""

from pathlib import Path

import aios_broker
from aios_broker.cli import model_package
from aios_workers.llm.llama import weights

LOCK = Path(aios_broker.__file__).parents[2] / "requirements-models.lock"


def test_the_pin_is_that_of_the_lock_file() -> None:
    locked = LOCK.read_text()
    assert model_package.REQUIREMENT in locked
    assert all(f"--hash=sha256:{one}" in locked for one in model_package.HASHES)


def test_the_file_is_the_one_that_the_worker_loads() -> None:
    assert (model_package.PACKAGE, model_package.FILE_NAME, model_package.FILE_SHA256) == (
        weights.PACKAGE,
        weights.FILE_NAME,
        weights.FILE_SHA256,
    )
