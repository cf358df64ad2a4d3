"""Snapshots: what was written is read back, and every damage is noticed."""

import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aios_broker.contract.errors import SnapshotCorrupt, SnapshotError, SnapshotForeign
from aios_broker.contract.snapshot import (
    MAGIC,
    VERSION,
    AnswersSnapshot,
    AnswerState,
    BeamEnd,
    BeamNode,
    BeamSnapshot,
    Snapshot,
    TokenScore,
    decode_snapshot,
    encode_snapshot,
)

MODEL = "smollm2@1f2e"
HEADER_BYTES = 9
token_ids = st.lists(st.integers(0, 2**31 - 1), max_size=200).map(tuple)
int32 = st.integers(-(2**31), 2**31 - 1)


@st.composite
def scores(draw: st.DrawFn) -> TokenScore:
    top = draw(st.lists(st.tuples(int32, int32), max_size=4))
    return TokenScore(draw(int32), tuple(a for a, _ in top), tuple(b for _, b in top))


@st.composite
def answers(draw: st.DrawFn) -> AnswerState:
    ids = tuple(draw(st.one_of(token_ids, st.lists(st.integers(0, 99), max_size=6))))
    with_scores = 0 < len(ids) <= 6 and draw(st.booleans())
    kept = tuple(draw(scores()) for _ in ids) if with_scores else ()
    return AnswerState(ids, kept, draw(st.sampled_from([None, "stop", "length"])))


@st.composite
def trees(draw: st.DrawFn) -> BeamSnapshot:
    size = draw(st.integers(0, 8))
    nodes = tuple(
        BeamNode(draw(st.integers(-1, place - 1)), draw(st.integers(0, 99)), draw(scores()))
        for place in range(size)
    )
    places = st.integers(-1, size - 1)
    ends = st.builds(
        BeamEnd, places, st.sampled_from(["stop", "length"]), st.one_of(st.none(), int32)
    )
    return BeamSnapshot(
        draw(st.text(max_size=9)),
        draw(token_ids),
        nodes,
        tuple(draw(st.lists(places, max_size=4))),
        tuple(draw(st.lists(ends, max_size=4))),
        draw(st.integers(0, 10**6)),
    )


several = st.builds(
    AnswersSnapshot,
    model=st.text(max_size=9),
    prompt_ids=token_ids,
    answers=st.lists(answers(), max_size=4).map(tuple),
    seed=st.integers(0, 2**63 - 1),
    emitted_characters=st.integers(0, 2**40),
)
SAMPLE = AnswersSnapshot(
    MODEL, tuple(range(1, 40)), (AnswerState((7, 7, 2**31 - 1)),), 2**63 - 1, 12
)
SCORE = TokenScore(-5, (1, 2), (-5, -9))
SAMPLES: tuple[Snapshot, ...] = (
    SAMPLE,
    AnswersSnapshot(MODEL, (1, 2), (AnswerState((7,), (SCORE,), "stop"), AnswerState((8,))), 3, 4),
    BeamSnapshot(
        MODEL,
        (1,),
        (BeamNode(-1, 4, SCORE), BeamNode(0, 5, SCORE)),
        (1,),
        (BeamEnd(0, "stop", -3), BeamEnd(-1, "stop", -9)),
        4,
    ),
)


@given(st.one_of(several, trees()))
@example(AnswersSnapshot("", (), (), 0))
def test_what_was_written_is_read_back(snapshot: Snapshot) -> None:
    assert decode_snapshot(encode_snapshot(snapshot), model=snapshot.model) == snapshot


@pytest.mark.parametrize(
    ("nodes", "live"),
    [
        ((BeamNode(0, 4, SCORE),), (0,)),  # its own parent
        ((BeamNode(1, 4, SCORE), BeamNode(-1, 4, SCORE)), (0,)),
        ((BeamNode(-2, 4, SCORE),), (0,)),
        ((BeamNode(-1, 4, SCORE),), (1,)),
        ((), (-2,)),
    ],
)
def test_a_tree_that_does_not_hold_together_is_refused(
    nodes: tuple[BeamNode, ...], live: tuple[int, ...]
) -> None:
    data = encode_snapshot(BeamSnapshot(MODEL, (1,), nodes, live, (), 1))

    with pytest.raises(SnapshotCorrupt):
        decode_snapshot(data, model=MODEL)


@pytest.mark.parametrize(
    "answer",
    [
        AnswerState((7, 8), (SCORE,)),
        AnswerState((7,), (TokenScore(-5, (1, 2), (-5,)),)),
    ],
)
def test_scores_that_do_not_fit_their_tokens_are_refused(answer: AnswerState) -> None:
    data = encode_snapshot(AnswersSnapshot(MODEL, (1,), (answer,), 0))

    with pytest.raises(SnapshotCorrupt):
        decode_snapshot(data, model=MODEL)


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_single_flipped_bit_is_noticed(sample: Snapshot) -> None:
    data = encode_snapshot(sample)
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SnapshotError):
            decode_snapshot(bytes(damaged), model=MODEL)


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_truncation_is_noticed(sample: Snapshot) -> None:
    data = encode_snapshot(sample)
    for length in range(len(data)):
        with pytest.raises(SnapshotCorrupt):
            decode_snapshot(data[:length], model=MODEL)


@given(st.binary(min_size=1, max_size=20))
def test_bytes_behind_the_end_are_noticed(more: bytes) -> None:
    with pytest.raises(SnapshotCorrupt):
        decode_snapshot(encode_snapshot(SAMPLE) + more, model=MODEL)


@given(st.binary(max_size=200))
@example(MAGIC + bytes([VERSION]) + bytes(4))
def test_any_other_bytes_are_no_snapshot(data: bytes) -> None:
    with pytest.raises(SnapshotError):
        decode_snapshot(data, model=MODEL)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_a_right_checksum_over_wrong_content_is_noticed_too(content: bytes) -> None:
    for body in (content, zlib.compress(content)):
        header = MAGIC + bytes([VERSION]) + zlib.crc32(body).to_bytes(4, "big")
        with pytest.raises(SnapshotCorrupt):
            decode_snapshot(header + body, model=MODEL)


def test_a_small_body_that_unpacks_to_very_much_is_refused_in_bounded_memory() -> None:
    body = zlib.compress(bytes(200 * 1024 * 1024), 9)
    header = MAGIC + bytes([VERSION]) + zlib.crc32(body).to_bytes(4, "big")

    with pytest.raises(SnapshotCorrupt):
        decode_snapshot(header + body, model=MODEL)


def test_another_version_says_both_numbers() -> None:
    data = bytearray(encode_snapshot(SAMPLE))
    data[len(MAGIC)] = VERSION + 1

    with pytest.raises(SnapshotForeign, match=rf"version {VERSION + 1}, .*version {VERSION}"):
        decode_snapshot(bytes(data), model=MODEL)


def test_another_model_says_both_names() -> None:
    with pytest.raises(SnapshotForeign, match=r"smollm2@1f2e.*other@0000"):
        decode_snapshot(encode_snapshot(SAMPLE), model="other@0000")


@pytest.mark.parametrize("data", [b"", b"AIOS", bytes(100), encode_snapshot(SAMPLE)[:-1]])
def test_the_error_says_what_and_what_now(data: bytes) -> None:
    with pytest.raises(SnapshotCorrupt) as caught:
        decode_snapshot(data, model=MODEL)

    assert caught.value.field == "snapshot"
    assert caught.value.remedy


def test_token_ids_cost_two_bytes_each_or_so() -> None:
    ids = tuple((n * 7919) % 49_152 for n in range(1_000))

    assert len(encode_snapshot(AnswersSnapshot(MODEL, ids, (), 0))) < 3_000 + HEADER_BYTES
