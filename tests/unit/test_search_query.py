"""What a query says: what is looked for, and its rules."""

import pytest

from aios_broker.contract.errors import InvalidSyscall
from aios_workers.search.query import Rule, read_query


def rules_of(query: str) -> list[list[str]]:
    """Return the rules of each side, those that exclude with a `-`."""

    def shown(rule: Rule) -> str:
        return f"-{rule.text}" if rule.is_excluded else rule.text

    return [[shown(rule) for rule in side] for side in read_query(query).rules]


@pytest.mark.parametrize(
    ("query", "text", "rules"),
    [
        ("red wine", "red wine", []),
        ('"red wine" cheese', "red wine cheese", [["red wine"]]),
        ("wine -red", "wine", [["-red"]]),
        ('wine -"from the box" -red', "wine", [["-from the box", "-red"]]),
        ('"red wine" or "white wine"', "red wine or white wine", [["red wine"], ["white wine"]]),
        ('"red wine" or beer', "red wine or beer", []),  # beer will do
        ("wine -red or beer", "wine or beer", []),
        ('-beer or "red wine"', "or red wine", [["-beer"], ["red wine"]]),
        ("or wine -red", "or wine", [["-red"]]),
        ("or", "or", []),
        # What is no rule: a dash between words or within one, an option, a quote that stays open.
        ("Monday - Friday", "Monday - Friday", []),
        ("well-known", "well-known", []),
        ("what does --json do", "what does --json do", []),
        ('a "quote that stays open', 'a "quote that stays open', []),
        ('wine " "', "wine", []),
        ('""', '""', []),
    ],
)
def test_what_a_query_says(query: str, text: str, rules: list[list[str]]) -> None:
    assert read_query(query).text == text
    assert rules_of(query) == rules


@pytest.mark.parametrize("query", ["-wine", '-wine -"red beer"', "-wine or -beer", '" "'])
def test_a_query_that_looks_for_nothing_is_refused(query: str) -> None:
    with pytest.raises(InvalidSyscall) as refused:
        read_query(query)
    assert refused.value.field == "body.query"
    assert refused.value.remedy is not None
