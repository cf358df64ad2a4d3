"""Log-probabilities, bias and masks: pure, against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_workers.llm.core import Sampling
from aios_workers.llm.cores.llama.sampler import Sampler, score

LOGITS = st.lists(st.integers(-8, 8), min_size=2, max_size=40).map(
    lambda values: np.array(values, dtype=np.float32)
)


@given(LOGITS, st.data())
def test_scores_are_the_softmax_of_the_logits(
    logits: np.typing.NDArray[np.float32], data: st.DataObject
) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    alternatives = data.draw(st.integers(0, 45))
    scored = score(logits, token, alternatives)
    total = math.log(math.fsum(math.exp(each) for each in logits.tolist()))
    ranked = sorted(range(len(logits)), key=lambda each: (-logits[each], each))[:alternatives]
    assert scored.logprob == pytest.approx(float(logits[token]) - total)
    assert [each.id for each in scored.top] == ranked
    assert [each.logprob for each in scored.top] == pytest.approx(
        [float(logits[each]) - total for each in ranked]
    )


@settings(max_examples=200)
@given(LOGITS, st.integers(0, 2**63 - 1), st.sampled_from([0.0, 0.7, 2.0]), st.data())
def test_only_what_is_allowed_is_chosen(
    logits: np.typing.NDArray[np.float32], seed: int, temperature: float, data: st.DataObject
) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits))))
    mask[data.draw(st.integers(0, len(logits) - 1))] = True
    top_k, top_p = data.draw(st.sampled_from([0, 1, 3])), data.draw(st.sampled_from([1.0, 0.5]))
    sampler = Sampler(Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed))
    assert mask[sampler.choose(logits, 5, mask)]


def test_a_bias_moves_the_choice_and_the_logits_stay() -> None:
    logits = np.array([1.0, 3.0, 2.0], dtype=np.float32)
    before = logits.copy()
    assert Sampler(Sampling(logit_bias={2: 1.5})).choose(logits, 0) == 2
    assert Sampler(Sampling(logit_bias={1: -100.0})).choose(logits, 0) == 2
    assert np.array_equal(logits, before)
