"""When a KV state is worth a file: what reading the tokens again costs against what the file costs.

Pure: the measured speeds go in, yes or no comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

# A state is written on the chance that its generation goes on elsewhere: it must save ten times
# what it costs. One that is there already needs only to be clearly faster than reading the tokens.
WRITE_MARGIN = 10.0
READ_MARGIN = 2.0
FILE_MS = 1.0  # of each operation beside its bytes: looking at the folder, locking, renaming
# Before the first one was timed; measured on two shared cores in memory: 1.2 and 0.7.
FIRST_WRITE_MS_PER_MB = 3.0
FIRST_READ_MS_PER_MB = 2.0
NEWEST_WEIGHT = 0.25  # of the latest time in the average
# Each state that was not written lets the estimate fall by so much: a store that was slow for a
# while is tried again.
FORGOTTEN_SHARE = 0.02
_MB = 1e6


@dataclass(slots=True)
class StateRule:
    """The speeds as measured so far, and what follows from them."""

    prefill_ms_per_token: float  # of this core, measured at its start
    write_ms_per_mb: float = FIRST_WRITE_MS_PER_MB
    read_ms_per_mb: float = FIRST_READ_MS_PER_MB

    def pays_to_write(self, tokens: int, size_bytes: int) -> bool:
        """Whether a state of so many tokens may be worth its file."""
        file_ms = 2 * FILE_MS + size_bytes / _MB * (self.write_ms_per_mb + self.read_ms_per_mb)
        return tokens * self.prefill_ms_per_token >= WRITE_MARGIN * file_ms

    def pays_to_read(self, saved_tokens: int, size_bytes: int) -> bool:
        """Whether a file that saves the reading of so many tokens is faster."""
        file_ms = FILE_MS + size_bytes / _MB * self.read_ms_per_mb
        return saved_tokens * self.prefill_ms_per_token >= READ_MARGIN * file_ms

    def wrote(self, size_bytes: int, took_ms: float) -> None:
        """Take in how long a file took to write."""
        self.write_ms_per_mb = _averaged(self.write_ms_per_mb, size_bytes, took_ms)

    def read(self, size_bytes: int, took_ms: float) -> None:
        """Take in how long a file took to read."""
        self.read_ms_per_mb = _averaged(self.read_ms_per_mb, size_bytes, took_ms)

    def passed_over(self) -> None:
        """Note that a state was not written because it did not seem to pay."""
        self.write_ms_per_mb *= 1 - FORGOTTEN_SHARE
        self.read_ms_per_mb *= 1 - FORGOTTEN_SHARE


def _averaged(before: float, size_bytes: int, took_ms: float) -> float:
    latest = max(0.0, took_ms - FILE_MS) / (size_bytes / _MB)
    return before + NEWEST_WEIGHT * (latest - before)
