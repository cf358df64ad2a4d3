"""The embedding model of the kernel itself: all-MiniLM-L6-v2, int8 weights, on one CPU thread.

A text of up to 256 tokens is one window; a longer one is cut into windows of 256 and its vector is
their mean, weighted by tokens. Of a very long text the first MAX_WINDOWS windows count: what lies
behind them does not reach the vector (keyword search sees all of it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from aios_broker.contract.errors import InvalidConfig
from aios_workers.model_files import MINILM, MINILM_TOKENIZER, ModelFile
from aios_workers.search.embedder import Vectors, unit_rows

NAME = "all-MiniLM-L6-v2-int8"
DIMENSION = 384
WINDOW_TOKENS = 256  # what the model was trained to take
MAX_WINDOWS = 4  # of one text: 0.3 s of one CPU
MAX_CHARACTERS = MAX_WINDOWS * WINDOW_TOKENS * 8  # of one text; the tokenizer sees no more
MAX_RUN_TOKENS = 2_048  # of one run of the model, padding included: bounds its memory


@dataclass(frozen=True, slots=True)
class _Window:
    text: int  # whose window it is
    ids: Sequence[int]


class Session(Protocol):
    """What is used of onnxruntime's session, which has no types of its own."""

    def run(self, outputs: None, feeds: dict[str, NDArray[np.int64]]) -> list[Vectors]:
        """Run the model once."""
        ...


class MiniLm:
    """The model in this process's memory: 0.2 s to load, about 120 MB. Not safe for threads."""

    dimension = DIMENSION

    def __init__(self, session: Session, tokenizer: Tokenizer) -> None:
        self._session = session
        self._tokenizer = tokenizer

    @classmethod
    def load(cls) -> MiniLm:
        """Read weights and tokenizer from their packages.

        Raises:
            InvalidConfig: They are not installed, or not whole.
        """
        weights, vocabulary = (_checked(file) for file in (MINILM, MINILM_TOKENIZER))
        tokenizer = Tokenizer.from_file(str(vocabulary))
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length=WINDOW_TOKENS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(weights), sess_options=options, providers=["CPUExecutionProvider"]
        )
        return cls(session, tokenizer)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one vector of length 1 per text, of all at once; about 4 ms for a short one."""
        windows = [
            _Window(place, ids) for place, text in enumerate(texts) for ids in self.split(text)
        ]
        windows.sort(key=lambda window: len(window.ids))  # little padding
        sums = np.zeros((len(texts), DIMENSION), dtype=np.float32)
        for group in _groups(windows):
            hidden = self.run([window.ids for window in group])
            for window, vector in zip(group, hidden, strict=True):
                sums[window.text] += vector * len(window.ids)
        return unit_rows(sums)

    def split(self, text: str) -> list[list[int]]:
        """Return the tokens of a text, in windows."""
        encoding = self._tokenizer.encode(text[:MAX_CHARACTERS])
        return [part.ids for part in (encoding, *encoding.overflowing)[:MAX_WINDOWS]]

    def run(self, windows: Sequence[Sequence[int]]) -> Vectors:
        """Return the mean hidden state of each window, of length 1: 0.1 s for a full one."""
        width = max(map(len, windows))
        tokens = np.zeros((len(windows), width), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, own in enumerate(windows):
            tokens[row, : len(own)] = own
            mask[row, : len(own)] = 1
        feeds = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": mask * 0}
        hidden = self._session.run(None, feeds)[0]
        weights = mask[..., None].astype(np.float32)
        return unit_rows((hidden * weights).sum(axis=1) / weights.sum(axis=1))


def _groups(windows: list[_Window]) -> list[list[_Window]]:
    """Split windows, shortest first, into runs of at most MAX_RUN_TOKENS with their padding."""
    groups: list[list[_Window]] = []
    for window in windows:
        if groups and (len(groups[-1]) + 1) * len(window.ids) <= MAX_RUN_TOKENS:
            groups[-1].append(window)
        else:
            groups.append([window])
    return groups


def _checked(file: ModelFile) -> Path:
    path = file.find()
    if path is None or not file.is_whole(path):
        raise InvalidConfig(
            f"the embedding model ({file.requirement}) is not installed, or not whole",
            field="AIOS_EMBEDDING_MODEL",
            remedy="run `aios setup`, or set it to `none`: search by keywords only",
        )
    return path
