"""Search by words: Okapi BM25, with how many of the owner's texts have each word.

The counts are kept by triggers (migrations/schema/words.sql). Of a long query the rarest words
count; of many texts those that have its rarest words are ranked.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond".
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from aios_broker.postgres.store import Cursor, only_row
from aios_workers.search.corpora import Corpus, Key, Ranked, Scope

SATURATION = 1.2  # k1: how little a word counts that comes again
LENGTH_SHARE = 0.75  # b: how much a text's length counts
MOST_WORDS = 64  # of a query, the rarest
MOST_MATCHES = 2_000  # texts that are ranked

_LEXEME = re.compile(r"'((?:[^'\\]|''|\\.)*)'")
_WORDS_OF = "SELECT plainto_tsquery('english', %s)::text AS words"
_USE = """
    SELECT * FROM aios_word_use(%(corpus)s, %(owners)s::bigint[], %(singles)s::text[],
                                %(wanted)s::text[])
"""
_WEIGHTS = "%(words)s::text[], %(weights)s::float8[], %(flat)s, %(steep)s"


@dataclass(frozen=True, slots=True)
class QueryWords:
    """A query's words, the rarest first, with what each is worth in one scope."""

    words: tuple[str, ...]
    weights: tuple[float, ...]
    flat: float  # of the formula's denominator, without ...
    steep: float  # ... and per word of the text's length
    matching: str  # a tsquery: what is ranked

    @property
    def parameters(self) -> dict[str, object]:
        """Return what the SQL of a score is made of."""
        return {
            "words": list(self.words),
            "weights": list(self.weights),
            "flat": self.flat,
            "steep": self.steep,
        }

    @property
    def most(self) -> float:
        """Return what no text's score reaches: a score's share of it compares between queries."""
        return sum(self.weights)


def idf(texts: int, of_all: int) -> float:
    """Return what a word is worth that so many of all texts have."""
    return math.log1p((of_all - texts + 0.5) / (texts + 0.5))


async def weigh(
    cursor: Cursor, corpus: Corpus, scope: Scope, text: str, condition: str = ""
) -> QueryWords | None:
    """Weigh a query's words; None: it has none that is in any text.

    `condition`: a tsquery that has to hold, too.
    """
    await cursor.execute(_WORDS_OF, (text,))
    wanted = lexemes((await only_row(cursor)).words)
    if not wanted:  # nothing but stop words
        return None
    values = {
        "corpus": corpus.table,
        "owners": None if scope.owners is None else list(scope.owners),
        "singles": list(scope.singles),
        "wanted": wanted,
    }
    await cursor.execute(_USE, values)
    use = await only_row(cursor)
    if not use.words or use.all_texts <= 0 or use.all_length <= 0:
        return None
    words, counts = use.words[:MOST_WORDS], use.texts[:MOST_WORDS]
    return QueryWords(
        words=tuple(words),
        weights=tuple((SATURATION + 1) * idf(count, use.all_texts) for count in counts),
        flat=SATURATION * (1 - LENGTH_SHARE),
        steep=SATURATION * LENGTH_SHARE * use.all_texts / use.all_length,
        matching=matching(words, counts, condition),
    )


def lexemes(tree: str) -> list[str]:
    """Return the words of a tsquery's text, each once."""
    found = (match.group(1) for match in _LEXEME.finditer(tree))
    return list(dict.fromkeys(re.sub(r"''|\\(.)", _unquoted, word) for word in found))


def _unquoted(match: re.Match[str]) -> str:
    return match.group(1) or "'"


def matching(words: Sequence[str], counts: Sequence[int], condition: str = "") -> str:
    """Return the tsquery of what is ranked: texts with one of the rarest words, as many as may be.

    Where even the rarest is in too many, those that have another word, too.
    """
    chosen, texts = 0, 0
    while chosen < len(words) and (not chosen or texts + counts[chosen] <= MOST_MATCHES):
        texts += counts[chosen]
        chosen += 1
    query = " | ".join(map(_quoted, words[:chosen]))
    if texts > MOST_MATCHES and chosen < len(words):
        query = f"{query} & ({' | '.join(map(_quoted, words[chosen:]))})"
    return f"({query}) & ({condition})" if condition else query


def _quoted(word: str) -> str:
    return "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"


async def best_by_words(
    cursor: Cursor, corpus: Corpus, scope: Scope, weighed: QueryWords, depth: int
) -> Ranked:
    """Return the keys of the texts with the best scores, best first; none has the score 0."""
    names = ", ".join(corpus.keys)
    found = (
        f"aios_{corpus.table}_matches(%(matching)s::tsquery, {_WEIGHTS}, %(of)s::bigint[], "
        f"{MOST_MATCHES}, %(best)s)"
    )
    await cursor.execute(
        f"SELECT {corpus.columns}, m.score FROM {found} m JOIN {corpus.table} t USING ({names}) "
        f"WHERE {scope.condition} ORDER BY m.score DESC, {names} LIMIT %(depth)s",
        {
            **scope.parameters,
            **weighed.parameters,
            "matching": weighed.matching,
            "of": None if scope.owners is None else list(scope.owners),
            "best": None if scope.is_narrowed else depth,
            "depth": depth,
        },
    )
    return [(tuple(row[:-1]), row[-1] / weighed.most) for row in await cursor.fetchall()]


async def texts_that_match(cursor: Cursor, corpus: Corpus, scope: Scope, tsquery: str) -> list[Key]:
    """Return the keys of texts that match, MOST_MATCHES at most; other owners' are among them."""
    names = ", ".join(corpus.keys)
    await cursor.execute(
        f"SELECT {names} FROM aios_{corpus.table}_matches("
        f"%(matching)s::tsquery, '{{}}', '{{}}', 0, 0, %(of)s::bigint[], {MOST_MATCHES}, NULL)",
        {"matching": tsquery, "of": None if scope.owners is None else list(scope.owners)},
    )
    return [tuple(row) for row in await cursor.fetchall()]


async def score_sql(cursor: Cursor, weighed: QueryWords | None) -> str:
    """Return the SQL of the same score for a row `t` of any text: its share of the most."""
    if weighed is None:
        return "0::float8"
    await cursor.execute(f"SELECT aios_bm25({_WEIGHTS}) AS formula", weighed.parameters)
    formula = (await only_row(cursor)).formula.replace("%", "%%")
    return f"({formula}) / {weighed.most!r}::float8"
