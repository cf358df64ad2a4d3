"""The engine's batching: whatever is cut, kept, restored or computed beside it, no id changes.

It runs on a simulated context whose next token is a function of all tokens before it, and which
checks what the library would not: that positions go on, that a slot has one wish for logits, and
that a step fits the micro-batch.
"""

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aios_broker.contract.errors import CoreError
from aios_workers.llm.core import Sampling
from aios_workers.llm.cores.llama.engine import PREFILL_BESIDE_ANSWERS_TOKENS, Engine
from aios_workers.llm.cores.llama.kv_state import KvState, StateCache
from aios_workers.llm.cores.llama.llama_context import Row
from aios_workers.llm.cores.llama.protocol import ContextShape, Ended, Generate, Tokens
from aios_workers.llm.cores.llama.sampler import Sampler

VOCABULARY = 23
END = 7
ROOM_BYTES = 10_000


class SimulatedContext:
    """A context without a model: logits are a hash of the slot's tokens."""

    def __init__(self, shape: ContextShape, end: int = END) -> None:
        self.shape = shape
        self.end = end
        self.slots: list[list[int]] = [[] for _ in range(shape.slots)]
        self.computed_rows = 0
        self.row_counts: list[int] = []
        self.broken = False

    def compute(self, rows: Sequence[Row]) -> dict[int, NDArray[np.float32]]:
        if self.broken:
            for row in rows:
                self.slots[row.slot].append(0)  # some of it may have happened
            raise CoreError("broken")
        assert 0 < len(rows) <= self.shape.micro_batch_tokens
        wishes = [row.slot for row in rows if row.wants_logits]
        assert len(wishes) == len(set(wishes))
        for row in rows:
            assert row.position == len(self.slots[row.slot])
            self.slots[row.slot].append(row.token)
        self.computed_rows += len(rows)
        self.row_counts.append(len(rows))
        return {slot: next_logits(self.slots[slot]) for slot in wishes}

    def truncate(self, slot: int, length: int) -> int:
        del self.slots[slot][length:]
        return length

    def export_state(self, slot: int) -> bytes:
        return bytes(self.slots[slot])

    def import_state(self, slot: int, state: bytes) -> bool:
        self.slots[slot] = list(state)
        return True

    def is_end(self, token: int) -> bool:
        return token == self.end


def next_logits(ids: Sequence[int]) -> NDArray[np.float32]:
    digest = hashlib.blake2b(bytes(ids), digest_size=VOCABULARY).digest()
    return np.frombuffer(digest, dtype=np.uint8).astype(np.float32)


def run_alone(request: Generate, end: int = END) -> tuple[tuple[int, ...], str]:
    """The answer by the rules alone: no batch, no slots, no KV state."""
    sampler = Sampler(request.sampling)
    ids = list(request.prompt_ids)
    while len(ids) < len(request.prompt_ids) + request.max_tokens:
        token = sampler.choose(next_logits(ids), position=len(ids))
        if token == end:
            return tuple(ids[len(request.prompt_ids) :]), "stop"
        ids.append(token)
    return tuple(ids[len(request.prompt_ids) :]), "length"


def request_of(
    stream: int,
    prompt: Sequence[int],
    *,
    output: Sequence[int] = (),
    max_tokens: int = 12,
    sampling: Sampling | None = None,
    request_id: str = "",
) -> Generate:
    sampling = sampling or Sampling(temperature=16.0, seed=len(prompt))
    request_id = request_id or f"r{stream}"
    return Generate(stream, request_id, tuple(prompt), tuple(output), max_tokens, sampling)


def owned(request: Generate, kv_owner: str) -> Generate:
    return msgspec.structs.replace(request, kv_owner=kv_owner)


class Client:
    """Submits requests, cuts them at given numbers of steps, and resumes them until they end."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.streams: dict[int, int] = {}  # stream to request number
        self.outputs: dict[int, list[int]] = {}
        self.reasons: dict[int, str] = {}
        self.next_stream = 0

    def start(self, number: int, prompt: Sequence[int], sampling: Sampling) -> None:
        self.next_stream += 1
        self.streams[self.next_stream] = number
        output = self.outputs.setdefault(number, [])
        self.engine.submit(
            request_of(
                self.next_stream,
                prompt,
                output=output,
                sampling=sampling,
                request_id=f"r{number}",
            )
        )

    def step(self) -> list[int]:
        """Return the numbers of the requests whose stream was cut."""
        cut = []
        for event in self.engine.step():
            number = self.streams[event.stream]
            if isinstance(event, Ended):
                assert event.error is None
                cut.append(number)
                del self.streams[event.stream]
                continue
            self.outputs[number] += event.ids
            if event.finish_reason is not None:
                assert number not in self.reasons
                self.reasons[number] = event.finish_reason
                del self.streams[event.stream]
        return cut

    def abort(self, number: int, *, keep: bool) -> None:
        for stream, running in list(self.streams.items()):
            if running == number:
                self.engine.abort(stream, keep=keep)


PROMPTS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=150)
ABORTS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 6), st.booleans()), min_size=0, max_size=12
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(PROMPTS, min_size=1, max_size=5),
    st.integers(1, 3),
    st.sampled_from([8, 63]),
    st.sampled_from([0, 200, ROOM_BYTES]),
    ABORTS,
)
def test_whatever_is_cut_no_id_changes(
    prompts: list[list[int]],
    slots: int,
    micro_batch_tokens: int,
    budget_bytes: int,
    aborts: list[tuple[int, int, bool]],
) -> None:
    shape = ContextShape(slots, 4_096, micro_batch_tokens=micro_batch_tokens)
    client = Client(Engine(SimulatedContext(shape), state_budget_bytes=budget_bytes))
    samplings = [
        Sampling(temperature=16.0 * (n % 2), seed=n, frequency_penalty=20.0 * (n % 3))
        for n in range(len(prompts))
    ]
    for number, prompt in enumerate(prompts):
        client.start(number, prompt, samplings[number])
    for number, steps, keep in aborts:
        for _ in range(steps):
            for cut in client.step():
                client.start(cut, prompts[cut], samplings[cut])
        client.abort(number % len(prompts), keep=keep)
    for _ in range(2_000):
        if not client.engine.busy:
            break
        for cut in client.step():
            client.start(cut, prompts[cut], samplings[cut])
    for number, prompt in enumerate(prompts):
        expected = run_alone(request_of(1, prompt, sampling=samplings[number]))
        assert (tuple(client.outputs[number]), client.reasons[number]) == expected


def test_a_long_prompt_is_read_in_pieces_beside_an_answer() -> None:
    context = SimulatedContext(ContextShape(2, 4_096), end=-1)
    engine = Engine(context, state_budget_bytes=0)
    engine.submit(request_of(1, [1, 2], max_tokens=500))
    engine.step()
    engine.submit(request_of(2, [3] * 300, max_tokens=1))
    while engine.busy and len(context.slots[1]) < 300:
        events = engine.step()
        assert any(isinstance(event, Tokens) and event.stream == 1 for event in events)
        assert context.row_counts[-1] <= 1 + PREFILL_BESIDE_ANSWERS_TOKENS


@pytest.mark.parametrize(("keep", "rows"), [(True, 1), (False, 61)])
def test_only_a_kept_state_spares_reading(*, keep: bool, rows: int) -> None:
    """Cut after its first token, pushed out of its slot, resumed."""
    context = SimulatedContext(ContextShape(1, 4_096))
    engine = Engine(context, state_budget_bytes=ROOM_BYTES)
    prompt = [5] * 60
    engine.submit(request_of(1, prompt, max_tokens=2, request_id="same"))
    (first,) = engine.step()
    assert isinstance(first, Tokens)
    engine.abort(1, keep=keep)
    engine.submit(request_of(2, [9, 9], max_tokens=1))
    engine.step()
    before = context.computed_rows
    engine.submit(request_of(3, prompt, output=first.ids, max_tokens=2, request_id="same"))
    (resumed,) = engine.step()
    assert context.computed_rows - before == rows
    assert isinstance(resumed, Tokens)
    assert resumed.cached_tokens == 61 - rows


def test_a_failed_computation_ends_all_that_run_and_the_engine_goes_on() -> None:
    context = SimulatedContext(ContextShape(2, 4_096))
    engine = Engine(context, state_budget_bytes=0)
    requests = [request_of(stream, [stream], max_tokens=3) for stream in (1, 2, 3)]
    for request in requests:
        engine.submit(request)
    context.broken = True
    assert {event.stream for event in engine.step() if isinstance(event, Ended)} == {1, 2}
    context.broken = False
    assert context.slots == [[], []]
    events = [event for _ in range(4) for event in engine.step()]
    ids = tuple(i for event in events if isinstance(event, Tokens) for i in event.ids)
    assert (ids, 3) == (run_alone(requests[2])[0], events[-1].stream)


def test_the_oldest_states_go_when_the_budget_is_full() -> None:
    cache = StateCache(100)
    for name in ("a", "b", "c"):
        assert cache.keep(name, KvState((1,), bytes(40)))
    assert (len(cache), cache.used_bytes) == (2, 80)
    assert cache.take("a") is None
    assert not cache.keep("d", KvState((1,), bytes(101)))
    assert cache.keep("b", KvState((1, 2), bytes(60)))
    assert (len(cache), cache.used_bytes) == (2, 100)
    assert cache.take("b") == KvState((1, 2), bytes(60))
    assert cache.used_bytes == 40


@pytest.mark.parametrize(
    ("ms_per_token", "steps"), [(0.0, 2), (10.0, 2), (100.0, 10), (5_000.0, 100)]
)
def test_a_slow_model_reads_in_shorter_steps(ms_per_token: float, steps: int) -> None:
    """A hundred tokens: at most a second a step, and one row at least."""
    context = SimulatedContext(ContextShape(1, 4_096), end=-1)
    engine = Engine(context, state_budget_bytes=0, prefill_ms_per_token=ms_per_token)
    engine.submit(Generate(1, "a", tuple(range(100)), (), 1, Sampling()))
    taken = 0
    while engine.busy:
        engine.step()
        taken += 1
    assert taken == steps


GUESSES = st.lists(
    st.tuples(
        st.sampled_from(["acme", "globex", "initech", ""]),
        st.lists(st.integers(1, 2), min_size=2, max_size=12),  # many begin alike
        st.integers(0, 6),  # steps before the next one comes
        st.booleans(),  # it is cut then, and what was read is kept
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(GUESSES, st.integers(1, 3), st.sampled_from([0, ROOM_BYTES]))
def test_nothing_is_reused_that_was_read_for_another(
    guesses: list[tuple[str, list[int], int, bool]], slots: int, budget_bytes: int
) -> None:
    """Whatever runs beside it, is cut or kept: only an owner's own contexts spare him reading."""
    context = SimulatedContext(ContextShape(slots, 4_096), end=-1)
    engine = Engine(context, state_budget_bytes=budget_bytes)
    contexts: dict[int, list[int]] = {}

    def step() -> None:
        for event in engine.step():
            if not isinstance(event, Tokens):
                continue
            number, cached = event.stream, event.cached_tokens
            owner, prompt, *_ = guesses[number]
            own = [
                context
                for each, context in contexts.items()
                if each != number and guesses[each][0] == owner
            ]
            assert not cached or any(each[:cached] == prompt[:cached] for each in own)
            contexts[number] += event.ids

    for number, (owner, prompt, steps, is_cut) in enumerate(guesses):
        contexts[number] = list(prompt)
        engine.submit(owned(request_of(number, prompt, max_tokens=3), owner))
        for _ in range(steps):
            step()
        if is_cut:
            engine.abort(number, keep=True)
    while engine.busy:
        step()


def test_an_owner_spares_himself_what_he_had_read() -> None:
    engine = Engine(SimulatedContext(ContextShape(2, 4_096), end=-1), state_budget_bytes=0)
    prompt = list(range(1, 20))
    cached = []
    for stream, owner in enumerate(("acme", "acme", "globex", "globex", "acme")):
        engine.submit(owned(request_of(stream, prompt, max_tokens=1), owner))
        while engine.busy:
            cached += [event.cached_tokens for event in engine.step() if isinstance(event, Tokens)]
    assert cached == [0, 18, 0, 18, 18]


def test_the_end_of_a_turn_ends_an_answer() -> None:
    sampling = Sampling()
    whole, _ = run_alone(request_of(1, [1, 2], sampling=sampling), end=-1)
    engine = Engine(SimulatedContext(ContextShape(1, 4_096), end=-1), state_budget_bytes=0)
    request = request_of(1, [1, 2], sampling=sampling)
    engine.submit(msgspec.structs.replace(request, turn_ends=frozenset({whole[4]})))
    events = []
    while engine.busy:
        events += [event for event in engine.step() if isinstance(event, Tokens)]
    assert tuple(token for event in events for token in event.ids) == whole[: whole.index(whole[4])]
    assert events[-1].finish_reason == "stop"
