"""Engines that share KV states: wherever a generation goes on, no id changes."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aios_workers.llm.core import Sampling
from aios_workers.llm.cores.llama import state_store
from aios_workers.llm.cores.llama.engine import Engine
from aios_workers.llm.cores.llama.protocol import ContextShape, Ended, Tokens
from aios_workers.llm.cores.llama.state_folder import StateFolder
from aios_workers.llm.cores.llama.state_store import StateRule, StateStore, state_key
from tests.unit.test_llama_engine import (
    VOCABULARY,
    SimulatedContext,
    request_of,
    run_alone,
)
from tests.waiting import wait_until

KEY = b"k" * 32
MANY = 100_000_000
SLOW_PREFILL_MS = 1_000.0  # per token: every state pays


@dataclass(slots=True)
class SharingCore:
    """An engine on a simulated context, joined to a folder."""

    folder: Path
    end: int = -1
    slots: int = 1
    prefill_ms: float = SLOW_PREFILL_MS
    max_bytes: int = MANY
    budget_bytes: int = 0  # of its own memory
    context: SimulatedContext = field(init=False)
    engine: Engine = field(init=False)
    streams: int = 0

    def __post_init__(self) -> None:
        self.context = SimulatedContext(ContextShape(self.slots, 4_096), end=self.end)
        self.engine = Engine(self.context, state_budget_bytes=self.budget_bytes)
        folder = StateFolder.open(self.folder, KEY, self.max_bytes)
        self.engine.shared = StateStore(folder, StateRule(self.prefill_ms))

    def close(self) -> None:
        self.engine.close()

    def run(
        self,
        request_id: str,
        prompt: list[int],
        output: list[int],
        *,
        tokens: int,
        sampling: Sampling | None = None,
        max_tokens: int = 60,
    ) -> tuple[list[int], str | None, int]:
        """Add up to `tokens` ids, then suspend; return all ids, how it ended, cached tokens.

        What it leaves is written before it returns.
        """
        told = self._run(request_id, prompt, output, tokens, sampling, max_tokens)
        self.settled()
        return told

    def _run(
        self,
        request_id: str,
        prompt: list[int],
        output: list[int],
        tokens: int,
        sampling: Sampling | None,
        max_tokens: int,
    ) -> tuple[list[int], str | None, int]:
        self.streams += 1
        ids, cached_tokens = list(output), 0
        self.engine.submit(
            request_of(
                self.streams,
                prompt,
                output=output,
                max_tokens=max_tokens,
                sampling=sampling,
                request_id=request_id,
            )
        )
        aborted = False
        while True:
            if not aborted and len(ids) - len(output) >= tokens:
                self.engine.abort(self.streams, keep=True)
                aborted = True
            for event in self.engine.step():
                if isinstance(event, Ended):
                    assert event.error is None
                    return ids, None, cached_tokens
                assert isinstance(event, Tokens)
                ids += event.ids
                cached_tokens += event.cached_tokens
                if event.finish_reason is not None:
                    return ids, event.finish_reason, cached_tokens

    def settled(self) -> None:
        wait_until(lambda: not self.engine.shared.busy)

    @property
    def files(self) -> list[str]:
        self.settled()
        return sorted(path.name for path in self.folder.glob("*.kv"))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[SharingCore, SharingCore]]:
    with closing(SharingCore(tmp_path / "kv")) as one, closing(SharingCore(tmp_path / "kv")) as two:
        yield one, two


PROMPT = [5] * 60


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=90), min_size=1, max_size=3
    ),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 7)), max_size=14),
    st.sampled_from([0, 150, 10_000]),
    st.sampled_from([600, 1_500, MANY]),
    st.data(),
)
def test_wherever_it_goes_on_no_id_changes(
    prompts: list[list[int]],
    moves: list[tuple[int, int, int]],
    memory_bytes: int,
    max_bytes: int,
    data: st.DataObject,
) -> None:
    """Also from a snapshot that is older than the state, as after a crash, and on full budgets."""
    with tempfile.TemporaryDirectory() as folder:
        cores = [
            SharingCore(Path(folder), slots=2, max_bytes=max_bytes, budget_bytes=memory_bytes)
            for _ in range(2)
        ]
        samplings = [Sampling(temperature=16.0 * (n % 2), seed=n) for n in range(len(prompts))]
        outputs: list[list[int]] = [[] for _ in prompts]
        for number, core, tokens in moves:
            each = number % len(prompts)
            ids, reason, _ = cores[core].run(
                f"r{each}", prompts[each], outputs[each], tokens=tokens, sampling=samplings[each]
            )
            if reason is None:
                outputs[each] = ids[: data.draw(st.integers(max(0, len(ids) - 3), len(ids)))]
        for each, prompt in enumerate(prompts):
            ids, _, _ = cores[each % 2].run(
                f"r{each}", prompt, outputs[each], tokens=100, sampling=samplings[each]
            )
            request = request_of(1, prompt, max_tokens=60, sampling=samplings[each])
            expected = run_alone(request, end=-1)
            assert (tuple(ids), "length") == expected
        for sharing in cores:
            sharing.close()
            assert sharing.engine.shared.counts.refused == 0


def test_another_process_reads_the_state_and_no_tokens(
    pair: tuple[SharingCore, SharingCore],
) -> None:
    one, two = pair
    output, _, _ = one.run("a", PROMPT, [], tokens=3)
    before = two.context.computed_rows
    _, _, cached_tokens = two.run("a", PROMPT, output, tokens=1)
    assert (cached_tokens, two.context.computed_rows - before) == (62, 1)
    assert (one.engine.shared.counts.written, two.engine.shared.counts.read) == (1, 1)


def test_a_state_that_is_shorter_than_the_snapshot_is_used_too(
    pair: tuple[SharingCore, SharingCore],
) -> None:
    """Its worker went on from memory and was killed behind a checkpoint."""
    one, two = pair
    output, _, _ = one.run("a", PROMPT, [], tokens=3)
    checkpoint, *_ = run_alone(request_of(1, PROMPT, max_tokens=20), end=-1)
    assert list(checkpoint[:3]) == output
    _, _, cached_tokens = two.run("a", PROMPT, list(checkpoint), tokens=1)
    assert cached_tokens == 62


def test_without_company_nothing_is_written_before_the_end(tmp_path: Path) -> None:
    one = SharingCore(tmp_path, slots=2, budget_bytes=10_000)
    output, _, _ = one.run("a", PROMPT, [], tokens=3)
    running = request_of(99, [7] * 50, max_tokens=60, request_id="b")
    one.engine.submit(running)
    one.engine.step()
    assert one.files == []
    one.close()
    assert len(list(tmp_path.glob("*.kv"))) == 2

    with closing(SharingCore(tmp_path)) as later:
        _, _, cached_tokens = later.run("a", PROMPT, output, tokens=1)
        assert cached_tokens == 62
        _, _, cached_tokens = later.run("b", [7] * 50, [], tokens=1)
        assert cached_tokens == 49  # of the last one the logits are wanted


def test_what_a_file_has_is_not_written_again_at_the_end(tmp_path: Path) -> None:
    one, two = SharingCore(tmp_path, budget_bytes=10_000), SharingCore(tmp_path)
    one.run("a", PROMPT, [], tokens=3)
    [name] = one.files
    one.close()
    assert one.engine.shared.counts.written == 1
    assert two.files == [name]
    two.close()


def test_a_generation_that_has_ended_leaves_no_file(pair: tuple[SharingCore, SharingCore]) -> None:
    one, two = pair
    output, _, _ = one.run("a", PROMPT, [], tokens=3)
    assert len(one.files) == 1
    output, reason, _ = two.run("a", PROMPT, output, tokens=100)
    assert (reason, two.files) == ("length", [])

    output, _, _ = one.run("b", PROMPT, [], tokens=3)
    assert len(one.files) == 1
    one.engine.submit(request_of(99, PROMPT, output=output, max_tokens=60, request_id="b"))
    one.engine.step()
    one.engine.abort(99, keep=False)  # a stop string was found, or it was cancelled
    assert one.files == []


def test_one_that_is_cut_before_its_first_token_keeps_its_file(
    pair: tuple[SharingCore, SharingCore],
) -> None:
    one, two = pair
    output, _, _ = one.run("a", PROMPT, [], tokens=3)
    longer = request_of(99, PROMPT * 3, output=output, max_tokens=60, request_id="a")
    two.engine.submit(longer)
    two.engine.step()
    two.engine.abort(99, keep=False)
    assert two.engine.shared.counts.read == 1
    assert len(two.files) == 1


def test_what_does_not_pay_is_not_written_and_not_read(tmp_path: Path) -> None:
    with (
        closing(SharingCore(tmp_path, prefill_ms=0.01)) as fast,
        closing(SharingCore(tmp_path)) as slow,
    ):
        fast.run("a", PROMPT, [], tokens=3)
        assert (fast.files, fast.engine.shared.counts.passed_over) == ([], 1)
        output, _, _ = slow.run("b", PROMPT, [], tokens=3)
        assert len(slow.files) == 1
        _, _, cached_tokens = fast.run("b", PROMPT, output, tokens=1)
        # What the slot held of the other generation is the same prompt: nothing else was read.
        assert fast.engine.shared.counts.read == 0
        assert cached_tokens >= 60


def test_a_state_that_is_just_being_written_is_waited_for(
    pair: tuple[SharingCore, SharingCore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader asks while the file is only begun; the writer ends it meanwhile."""
    monkeypatch.setattr(state_store, "COMING_LIMIT_S", 10.0)  # however busy the machine is
    one, two = pair
    output, _, _ = one.run("a", PROMPT, [], tokens=3)
    [name] = one.files
    whole = (tmp_path / "kv" / name).read_bytes()
    (tmp_path / "kv" / name).unlink()
    begun = tmp_path / "kv" / f"{name.removesuffix('.kv')}.0123.tmp"
    begun.touch()

    def end_it() -> None:
        begun.write_bytes(whole)
        begun.rename(begun.parent / name)

    timer = threading.Timer(0.03, end_it)
    timer.start()
    _, _, cached_tokens = two.run("a", PROMPT, output, tokens=1)
    timer.join()
    assert cached_tokens == 62


def test_a_writer_that_died_is_not_waited_for_long(
    pair: tuple[SharingCore, SharingCore], tmp_path: Path
) -> None:
    one, two = pair
    output, _, _ = one.run("a", PROMPT, [], tokens=3)
    [name] = one.files
    (tmp_path / "kv" / name).rename(tmp_path / "kv" / f"{name.removesuffix('.kv')}.0123.tmp")
    ids, _, cached_tokens = two.run("a", PROMPT, output, tokens=1)
    assert (len(ids), cached_tokens) == (4, 0)


def test_what_is_in_memory_is_not_read_from_a_file(tmp_path: Path) -> None:
    with (
        closing(SharingCore(tmp_path, budget_bytes=10_000)) as one,
        closing(SharingCore(tmp_path)),
    ):
        output, _, _ = one.run("a", PROMPT, [], tokens=3)
        one.run("b", [7] * 50, [], tokens=1)  # it takes the slot
        assert len(one.files) == 2
        _, _, cached_tokens = one.run("a", PROMPT, output, tokens=1)
        assert (cached_tokens, one.engine.shared.counts.read) == (62, 0)


def test_a_folder_that_went_bad_harms_nobody(
    pair: tuple[SharingCore, SharingCore], tmp_path: Path
) -> None:
    one, two = pair
    (tmp_path / "kv").rename(tmp_path / "away")
    (tmp_path / "kv").touch()
    output, _, _ = one.run("a", PROMPT, [], tokens=3)
    ids, _, cached_tokens = two.run("a", PROMPT, output, tokens=1)
    assert (len(ids), cached_tokens) == (4, 0)
    (tmp_path / "kv").unlink()
    (tmp_path / "away").rename(tmp_path / "kv")
    assert two.engine.shared.counts.failed > 0
    one.run("b", PROMPT, [], tokens=3)
    assert len(one.files) == 1


def test_a_damaged_file_is_removed_and_counted(
    pair: tuple[SharingCore, SharingCore], tmp_path: Path
) -> None:
    one, two = pair
    output, _, _ = one.run("a", PROMPT, [], tokens=3)
    path = tmp_path / "kv" / one.files[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    two.engine.submit(request_of(1, PROMPT, output=output, max_tokens=4, request_id="a"))
    (ended,) = two.engine.step()
    expected, _ = run_alone(request_of(1, PROMPT, max_tokens=4), end=-1)
    assert isinstance(ended, Tokens)
    assert ((*output, *ended.ids), ended.cached_tokens) == (expected, 0)
    assert (two.engine.shared.counts.refused, path.exists()) == (1, False)


def test_only_cores_that_compute_alike_share() -> None:
    shape = ContextShape(2, 512)
    keys = [
        state_key("f" * 16, shape, exact_resume=True),
        state_key("0" * 16, shape, exact_resume=True),
        state_key("f" * 16, shape, exact_resume=False),
        state_key("f" * 16, replace(shape, threads=2), exact_resume=True),
        state_key("f" * 16, replace(shape, micro_batch_tokens=32), exact_resume=True),
        state_key("f" * 16, replace(shape, slots=3), exact_resume=True),
    ]
    assert len(set(keys)) == len(keys)
    larger = replace(shape, context_tokens=1_024)
    assert state_key("f" * 16, larger, exact_resume=True) == keys[0]


def test_a_state_that_the_library_refuses_is_removed_and_not_counted_as_read(
    pair: tuple[SharingCore, SharingCore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    output, _, _ = one.run("a", PROMPT, [], tokens=3)

    def refuse(slot: int, _state: bytes) -> bool:
        two.context.truncate(slot, 0)
        return False

    monkeypatch.setattr(two.context, "import_state", refuse)
    two.engine.submit(request_of(1, PROMPT, output=output, max_tokens=4, request_id="a"))
    (ended,) = two.engine.step()
    assert isinstance(ended, Tokens)
    assert ended.cached_tokens == 0
    counts = two.engine.shared.counts
    assert (counts.read, counts.refused, two.files) == (0, 1, [])
