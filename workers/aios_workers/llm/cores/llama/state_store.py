"""KV states for other processes: written beside the engine, read where reading tokens costs more.

A cache and nothing else: whatever goes wrong here is counted and logged, and the tokens are read.
A state is written when its generation is suspended while another core of the same model lives on
this host, and when this process ends: then all that it holds, since its worker will be replaced.
"""

import hashlib
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from aios_workers.llm.cores.llama.kv_state import KvState, StateRefused, file_bytes
from aios_workers.llm.cores.llama.protocol import ContextShape, StateCounts
from aios_workers.llm.cores.llama.state_folder import Entry, NoRoom, Reserved, StateFolder

logger = logging.getLogger(__name__)

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

MAX_PENDING_WRITES = 4  # each holds its state in memory; further states are not written
COMING_LIMIT_S = 0.25  # for a state that its writer has just begun: 24 MB take some 30 ms
COMING_POLL_S = 0.002
SWEEP_EVERY_S = 60.0
CLOSE_LIMIT_S = 3.0  # less than the worker gives this process to end
COMPLAIN_EVERY_S = 60.0  # a full disk fails every write
MAX_REMEMBERED = 10_000  # requests that have files; those forgotten leave them to the age limit


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


def state_key(fingerprint: str, shape: ContextShape, *, exact_resume: bool) -> bytes:
    """Return what cores must have in common to use each other's states.

    Beside weights and build it is what decides how llama.cpp computes: a state of a core that
    rounds in another way would make a resumed answer differ from the uninterrupted one. The slots,
    because llama.cpp loads a state only into as many KV streams as it comes from.
    """
    rows = (shape.micro_batch_tokens, shape.joint_rows)
    settings = (fingerprint, shape.threads, *rows, shape.grade, exact_resume, shape.slots)
    return hashlib.sha256("\n".join(map(str, settings)).encode()).digest()


class NoStates:
    """Without a folder: nothing is kept, nothing is found."""

    @property
    def counts(self) -> StateCounts:
        """What has been done with states."""
        return StateCounts()

    @property
    def busy(self) -> bool:
        """Whether the counts may still change by themselves."""
        return False

    def keep(self, request_id: str, state: KvState) -> bool:
        """Keep nothing."""
        return False

    def find(self, request_id: str, known: Sequence[int], *, beyond_tokens: int) -> KvState | None:
        """Find nothing."""
        return None

    def tried(self, request_id: str, *, restored: bool) -> None:
        """Do nothing."""

    def drop(self, request_id: str) -> None:
        """Do nothing."""

    def close(self, states: Iterable[tuple[str, KvState]]) -> None:
        """Do nothing."""


class StateStore(NoStates):
    """The states of one core process in a folder that others share. The engine's thread calls."""

    def __init__(self, folder: StateFolder, rule: StateRule) -> None:
        self._folder = folder
        self._rule = rule
        self._outcomes: Counter[str] = Counter()  # by the fields of `StateCounts`
        self._used_bytes = 0
        self._counting = threading.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._asked_jobs = 0  # changed by the engine's thread alone
        self._ended_jobs = 0  # changed by the writer alone
        self._have_files: set[str] = set()  # requests, as far as this process has seen
        self._complained_at = -COMPLAIN_EVERY_S
        self._writer = threading.Thread(target=self._work, name="kv-states", daemon=True)
        self._writer.start()

    @property
    def counts(self) -> StateCounts:
        """What has been done with states."""
        with self._counting:
            return StateCounts(**self._outcomes, used_bytes=self._used_bytes)

    @property
    def busy(self) -> bool:
        """Whether the writer has something to do."""
        return self._asked_jobs != self._ended_jobs

    def keep(self, request_id: str, state: KvState) -> bool:
        """Let a state be written if another core lives that may want it, and if it pays."""
        try:
            if not self._folder.has_company():
                return False
            if self._asked_jobs - self._ended_jobs >= MAX_PENDING_WRITES or not self._pays(state):
                self._count("passed_over")
                return False
            reserved = self._folder.reserve(request_id, len(state.ids))
        except OSError as error:
            self._fail("cannot be begun", error)
            return False
        self._ask(partial(self._write, reserved, state))
        self._remember(request_id)
        return True

    def find(self, request_id: str, known: Sequence[int], *, beyond_tokens: int) -> KvState | None:
        """Return a state that saves reading more of `known` than so many tokens, if one pays.

        Waits a moment for a state that another core is just writing.
        """

        def pays(entry: Entry) -> bool:
            saved_tokens = min(entry.tokens, len(known)) - beyond_tokens
            return self._rule.pays_to_read(saved_tokens, entry.size_bytes)

        if not self._rule.pays_to_read(len(known) - beyond_tokens, 0):
            return None
        for entry in self._entries(request_id, pays):
            state = self._read(entry, known, beyond_tokens)
            if state is not None:
                self._remember(request_id)
                return state
        return None

    def tried(self, request_id: str, *, restored: bool) -> None:
        """Count a state that was found: used, or refused by llama.cpp and removed."""
        if restored:
            self._count("read")
            return
        self._count("refused")
        logger.warning("the KV state of %s is removed: llama.cpp refused it", request_id)
        self.drop(request_id)

    def drop(self, request_id: str) -> None:
        """Remove the states of a generation that has ended."""
        if request_id not in self._have_files:
            return
        self._have_files.discard(request_id)
        self._ask(partial(self._folder.drop, request_id))

    def close(self, states: Iterable[tuple[str, KvState]]) -> None:
        """Write these for whoever comes next, as many as the time allows, and leave."""
        deadline = time.monotonic() + CLOSE_LIMIT_S
        self._jobs.put(None)
        self._writer.join(timeout=CLOSE_LIMIT_S)
        for request_id, state in states:
            if time.monotonic() > deadline:
                logger.warning("KV states: no time to keep all of them")
                break
            if self._pays(state):
                self._guarded(partial(self._write_now, request_id, state))
        self._guarded(self._folder.close)

    def _remember(self, request_id: str) -> None:
        if len(self._have_files) >= MAX_REMEMBERED:
            self._have_files.clear()
        self._have_files.add(request_id)

    def _pays(self, state: KvState) -> bool:
        if self._rule.pays_to_write(len(state.ids), file_bytes(state)):
            return True
        self._rule.passed_over()
        return False

    # The writer's thread.

    def _ask(self, job: Callable[[], None]) -> None:
        self._asked_jobs += 1
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=SWEEP_EVERY_S)
            except queue.Empty:
                self._guarded(self._folder.sweep)
                continue
            if job is None:
                return
            self._guarded(job)
            self._ended_jobs += 1

    def _guarded(self, job: Callable[[], None]) -> None:
        """Do a job; that it fails harms nobody."""
        try:
            job()
        except (OSError, NoRoom) as error:
            self._fail("cannot be kept", error)

    def _write_now(self, request_id: str, state: KvState) -> None:
        self._write(self._folder.reserve(request_id, len(state.ids)), state)

    def _write(self, reserved: Reserved, state: KvState) -> None:
        began = time.monotonic()
        self._used_bytes = self._folder.write(reserved, state)
        self._rule.wrote(file_bytes(state), (time.monotonic() - began) * 1_000)
        self._count("written")

    # The engine's thread.

    def _entries(self, request_id: str, pays: Callable[[Entry], bool]) -> list[Entry]:
        """Return the states that pay, best first; wait for one that is being written."""
        deadline = time.monotonic() + COMING_LIMIT_S
        while True:
            entries = [entry for entry in self._listed(request_id) if pays(entry)]
            now = time.time()
            coming = any(
                entry.being_written and now - entry.used_at < COMING_LIMIT_S for entry in entries
            )
            if not coming or time.monotonic() > deadline:
                return [entry for entry in entries if not entry.being_written]
            time.sleep(COMING_POLL_S)

    def _listed(self, request_id: str) -> list[Entry]:
        try:
            return self._folder.entries_of(request_id)
        except OSError as error:
            self._fail("cannot be looked for", error)
            return []

    def _read(self, entry: Entry, known: Sequence[int], beyond_tokens: int) -> KvState | None:
        began = time.monotonic()
        try:
            state = self._folder.read(entry, known, beyond_tokens=beyond_tokens)
        except StateRefused as error:
            self._count("refused")
            logger.warning("KV state %s is not used and removed: %s", entry.path.name, error)
            self._remove(entry)
            return None
        except FileNotFoundError:  # another core has just ended it, or made room
            return None
        except OSError as error:
            self._fail("cannot be read", error)
            return None
        if state is not None:
            self._rule.read(entry.size_bytes, (time.monotonic() - began) * 1_000)
        return state

    def _remove(self, entry: Entry) -> None:
        try:
            entry.path.unlink(missing_ok=True)
        except OSError as error:
            self._fail("cannot be removed", error)

    # Either.

    def _count(self, outcome: str) -> None:
        with self._counting:
            self._outcomes[outcome] += 1

    def _fail(self, what: str, error: Exception) -> None:
        """Count a failure, and log it unless one was logged just now."""
        self._count("failed")
        now = time.monotonic()
        if now - self._complained_at >= COMPLAIN_EVERY_S:
            self._complained_at = now
            logger.warning("a KV state %s; generations go on without: %s", what, error)
