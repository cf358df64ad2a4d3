"""Log-probabilities between a core, the snapshot and the result. Pure.

They are kept as whole millionths of a nat, from the moment they come: sums are exact, and an
answer that was suspended has the same ones as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aios_broker.contract.reply import Alternative, TokenLogprob
from aios_broker.contract.snapshot import TokenScore
from aios_workers.llm.core import ScoredToken

MILLION = 1_000_000
_LEAST = -(2**31)  # less is kept as this, minus infinity too: about e ** -2147
_MOST = 2**31 - 1

Decode = Callable[[Sequence[int]], bytes]


def millionths(logprob: float) -> int:
    """Return a log-probability as a whole number of millionths."""
    if logprob * MILLION <= _LEAST or logprob != logprob:
        return _LEAST
    return min(_MOST, round(logprob * MILLION))


def score_of(entry: ScoredToken, *, alternatives: int) -> TokenScore:
    """Return a core's entry as it is kept, with the best alternatives alone."""
    top = entry.top[:alternatives]
    return TokenScore(
        millionths(entry.logprob),
        tuple(each.id for each in top),
        tuple(millionths(each.logprob) for each in top),
    )


def shown(
    ids: Sequence[int], scores: Sequence[TokenScore], decode: Decode
) -> tuple[TokenLogprob, ...]:
    """Return the scores of an answer's ids as its caller sees them."""

    def text(token: int) -> str:
        return decode((token,)).decode("utf-8", "replace")

    return tuple(
        TokenLogprob(
            token,
            score.logprob / MILLION,
            text(token),
            tuple(
                Alternative(other, logprob / MILLION, text(other))
                for other, logprob in zip(score.top_ids, score.top_logprobs, strict=True)
            ),
        )
        for token, score in zip(ids, scores, strict=True)
    )
