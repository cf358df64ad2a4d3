"""Whatever way llama.cpp computes the same tokens, the logits are the same bits.

At more than 512 tokens, where llama.cpp has one attention path for a single sequence and another
for several; the answers of the exactness test are shorter.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from aios_workers.llm.cores.llama.library import Library, find_weights
from aios_workers.llm.cores.llama.llama_context import Context, Row, probe
from aios_workers.llm.cores.llama.protocol import ContextShape

READ_TOKENS = 540
WRITTEN_TOKENS = 10
IDS = [(i * 7_919) % 49_000 for i in range(1, READ_TOKENS + WRITTEN_TOKENS + 1)]
SUBJECT, NEIGHBOUR = 2, 0  # not adjacent: llama.cpp then computes them apart


@pytest.fixture(scope="module")
def context() -> Iterator[Context]:
    context = Context.load(Library.load(), find_weights(), ContextShape(3, 1_024))
    yield context
    context.close()


def rows_of(slot: int, start: int, end: int) -> list[Row]:
    return [Row(slot, i, IDS[i], wants_logits=i == len(IDS) - 1) for i in range(start, end)]


def read(context: Context, slot: int, pieces: list[int], beside: int | None = None) -> int:
    """Compute the first tokens in pieces; return how many tokens the neighbour then has."""
    start = 0
    for number, piece in enumerate(pieces):
        rows = rows_of(slot, start, start + piece)
        if beside is not None:
            rows.append(Row(beside, number, IDS[number], wants_logits=True))
        context.compute(rows)
        start += piece
    return len(pieces)


@pytest.fixture(scope="module")
def state(context: Context) -> bytes:
    read(context, 0, [60] * 9)
    return context.export_state(0)


@pytest.fixture(scope="module")
def expected(context: Context, state: bytes) -> NDArray[np.float32]:
    """The last logits when all was written token by token, alone."""
    assert context.import_state(0, state)
    for i in range(READ_TOKENS, len(IDS)):
        logits = context.compute(rows_of(0, i, i + 1))
    return logits[0].copy()


def test_a_restored_state_beside_others(
    context: Context, state: bytes, expected: NDArray[np.float32]
) -> None:
    assert context.import_state(SUBJECT, state)
    for slot in (NEIGHBOUR, 1):
        context.truncate(slot, 0)
    for number, i in enumerate(range(READ_TOKENS, len(IDS))):
        neighbours = [Row(slot, number, 100 + slot, wants_logits=True) for slot in (NEIGHBOUR, 1)]
        logits = context.compute([*neighbours, *rows_of(SUBJECT, i, i + 1)])
    assert np.array_equal(logits[SUBJECT], expected)


def test_read_again_in_other_pieces_beside_another(
    context: Context, expected: NDArray[np.float32]
) -> None:
    for slot in (NEIGHBOUR, SUBJECT):
        context.truncate(slot, 0)
    pieces = [62, 1, 16, 61, 2, 62, 62, 62, 62, 62, 62, 36 - 10]
    read(context, SUBJECT, pieces, beside=NEIGHBOUR)
    logits = context.compute(rows_of(SUBJECT, sum(pieces), len(IDS)))
    assert np.array_equal(logits[SUBJECT], expected)


def test_cut_back_and_computed_again(
    context: Context, state: bytes, expected: NDArray[np.float32]
) -> None:
    """The tail of a slot's state is dropped, as when a prompt shares only its beginning."""
    assert context.import_state(0, state)
    context.truncate(0, 500)
    logits = context.compute(rows_of(0, 500, len(IDS)))
    assert np.array_equal(logits[0], expected)


def test_the_probe_finds_exactness_and_empties_the_slots(context: Context) -> None:
    assert probe(context).exact_resume
    context.compute([Row(slot, 0, 5, wants_logits=True) for slot in range(3)])  # position 0 is free


def test_large_micro_batches_with_values_of_one_type_are_not_called_exact() -> None:
    shape = ContextShape(1, 1_024, 1, 512, 512, "same-context")
    context = Context.load(Library.load(), find_weights(), shape)
    try:
        assert not probe(context).exact_resume
    finally:
        context.close()
