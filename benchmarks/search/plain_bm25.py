"""Okapi BM25 in its plain form: what the kernel's search by words is compared with.

With idf = ln(1 + (N - n + 0.5) / (n + 0.5)), as Lucene and the package bm25s have it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)


class PlainBm25(Generic[Name]):
    """Scores of all texts for a query; each text is the list of its words."""

    def __init__(
        self, texts: Mapping[Name, Sequence[str]], *, k1: float = 1.2, b: float = 0.75
    ) -> None:
        self._k1, self._b = k1, b
        self._times = {name: Counter(words) for name, words in texts.items()}
        self._lengths = {name: len(words) for name, words in texts.items()}
        self._mean_length = sum(self._lengths.values()) / max(1, len(texts))
        self._having = Counter(word for times in self._times.values() for word in times)

    def weights(self, query: Sequence[str]) -> dict[str, float]:
        """Return what each word of the query that any text has is worth at most."""
        found = {}
        for word in dict.fromkeys(query):
            if having := self._having[word]:
                idf = math.log(1 + (len(self._times) - having + 0.5) / (having + 0.5))
                found[word] = (self._k1 + 1) * idf
        return found

    def scores(self, query: Sequence[str]) -> dict[Name, float]:
        """Return the scores of the texts that have a word of the query, best first."""
        weights = self.weights(query)
        found: dict[Name, float] = {}
        for name, times in self._times.items():
            norm = self._k1 * (1 - self._b + self._b * self._lengths[name] / self._mean_length)
            score = sum(
                weight * times[word] / (times[word] + norm)
                for word, weight in weights.items()
                if word in times
            )
            if score:
                found[name] = score
        return dict(sorted(found.items(), key=lambda item: -item[1]))
