"""What a person's query says: what is looked for, which phrases must be there, which words not.

    hotel "near the station" -hostel

The rules are those of web search, and bind every mode: a phrase in double quotes must be there, a
word or phrase after `-` must not; between two sides with `or` it is enough that one holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.postgres.store import Cursor, only_row

_PARTS = re.compile(
    r'(?<!\S)-"(?P<no_phrase>[^"]+)"|"(?P<phrase>[^"]+)"|(?<!\S)-(?P<no_word>\w[^\s"]*)'
    r"|(?<!\S)(?P<either>or)(?!\S)",
    re.IGNORECASE,
)
_AS_WORDS = """
    SELECT array_agg(phraseto_tsquery('english', text)::text ORDER BY nth) AS queries
      FROM unnest(%s::text[]) WITH ORDINALITY AS part (text, nth)
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """A phrase that must be in a text, or a word or phrase that must not."""

    text: str
    is_excluded: bool = False


Rules = tuple[tuple[Rule, ...], ...]  # all of one of them hold; none: any text will do


@dataclass(frozen=True, slots=True)
class Query:
    """A query's text without what is only a rule, and its rules."""

    text: str
    rules: Rules = ()


@dataclass(frozen=True, slots=True)
class Filter:
    """Rules as Postgres checks them: a tsquery, empty where any text will do."""

    tsquery: str = ""
    is_selective: bool = False  # it asks for words, so that an index finds what has them

    @property
    def sql(self) -> str:
        """Return what is added to a condition on `t`."""
        return " AND t.words @@ %(rules)s::tsquery" if self.tsquery else ""

    @property
    def parameters(self) -> Mapping[str, object]:
        """Return the parameter of that."""
        return {"rules": self.tsquery}


def read_query(text: str) -> Query:
    """Return what a query says.

    Raises:
        InvalidSyscall: it says only what must not be there.
    """
    looked_for, at = [], 0
    sides: list[_Part] = [_Part()]
    for match in _PARTS.finditer(text):
        sides[-1].hear(text[at : match.start()])
        looked_for += [text[at : match.start()], match["phrase"] or match["either"] or ""]
        at = match.end()
        if match["either"]:
            sides.append(_Part())
        elif phrase := match["phrase"]:
            if phrase.strip():
                sides[-1].rules.append(Rule(phrase))
        else:
            sides[-1].rules.append(Rule(match["no_phrase"] or match["no_word"], is_excluded=True))
    sides[-1].hear(text[at:])
    rest = " ".join("".join((*looked_for, text[at:])).split())
    sides = [side for side in sides if not side.is_empty]
    if not rest or (sides and all(side.only_excludes for side in sides)):
        raise InvalidSyscall(
            "the query says only what must not be there" if sides else "the query is blank",
            field="body.query",
            remedy="add what is looked for; a word after `-` is left out",
        )
    rules = tuple(tuple(side.rules) for side in sides)
    return Query(rest, rules if rules and all(rules) else ())


@dataclass(slots=True)
class _Part:
    """What stands on one side of an `or`."""

    rules: list[Rule] = field(default_factory=list)
    has_text: bool = False

    def hear(self, text: str) -> None:
        """Take what is no rule."""
        self.has_text = self.has_text or bool(text.strip())

    @property
    def is_empty(self) -> bool:
        return not self.has_text and not self.rules

    @property
    def only_excludes(self) -> bool:
        return not self.has_text and all(rule.is_excluded for rule in self.rules)


async def filter_of(cursor: Cursor, rules: Rules) -> Filter:
    """Return rules as Postgres checks them. Stop words are not kept: they bind nothing."""
    if not rules:
        return Filter()
    await cursor.execute(_AS_WORDS, ([rule.text for side in rules for rule in side],))
    found = iter((await only_row(cursor)).queries)
    sides = [[(rule, query) for rule in side if (query := next(found))] for side in rules]
    if not all(sides):
        return Filter()
    return Filter(
        " | ".join(f"({_all_of(side)})" for side in sides),
        is_selective=all(any(not rule.is_excluded for rule, _ in side) for side in sides),
    )


def _all_of(side: Sequence[tuple[Rule, str]]) -> str:
    return " & ".join(f"!({query})" if rule.is_excluded else f"({query})" for rule, query in side)
