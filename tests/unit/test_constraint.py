"""Constraints over a vocabulary: what may come next, where the text may end, what is refused."""

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_broker.contract.errors import CoreError, InvalidSyscall
from aios_broker.places import Holder
from aios_workers.llm.constraint import Compiler, ConstraintChecker, Matcher
from aios_workers.llm.core import Constraint
from aios_workers.llm.cores.simulated import simulated_model as vocabulary

END = vocabulary.END_ID
ONE = Holder("acme", "one")
COMPILER = Compiler(vocabulary.constraint_pieces(), (END,), tuple)
PERSON = Constraint(
    "json",
    json.dumps(
        {
            "type": "object",
            "required": ["name", "age"],
            "additionalProperties": False,
            "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        }
    ),
)
LIST = Constraint("grammar", 'start: "[" item ("," item){0,3} "]"\nitem: /[a-z]{1,4}/')
WORD = Constraint("regex", "ab?")


def allowed(matcher: Matcher) -> set[int]:
    return set(matcher.allowed().nonzero()[0].tolist())


def walk(constraint: Constraint, rng: random.Random, limit: int = 300) -> list[int]:
    """Return the ids of a text that a random writer makes of what is allowed."""
    matcher, ids = COMPILER.start(constraint), list[int]()
    while not matcher.must_end and len(ids) < limit:
        choices = sorted(allowed(matcher))
        token = END if END in choices else rng.choice(choices)
        if token == END:
            break
        matcher.add(token)
        ids.append(token)
    return ids


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_whatever_is_written_has_the_form(seed: int) -> None:
    rng = random.Random(seed)
    person = json.loads(vocabulary.decode(walk(PERSON, rng)))
    assert set(person) == {"name", "age"}
    assert isinstance(person["name"], str)
    assert len(person["name"]) <= 20
    assert isinstance(person["age"], int)
    assert re.fullmatch(rb"\[[a-z]{1,4}(,[a-z]{1,4}){0,3}\]", vocabulary.decode(walk(LIST, rng)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([PERSON, LIST]))
def test_a_matcher_that_is_built_anew_allows_the_same(seed: int, constraint: Constraint) -> None:
    ids = walk(constraint, random.Random(seed))
    cut = random.Random(seed).randrange(len(ids))
    kept = COMPILER.start(constraint)
    for token in ids[:cut]:
        kept.allowed()
        kept.add(token)
    assert allowed(COMPILER.start(constraint, ids[:cut])) == allowed(kept)


def test_the_end_is_allowed_exactly_where_the_text_may_end() -> None:
    matcher = COMPILER.start(WORD)
    assert allowed(matcher) == {ord("a")}
    matcher.add(ord("a"))
    assert (allowed(matcher), matcher.must_end) == ({ord("b"), END}, False)
    matcher.add(ord("b"))
    assert matcher.must_end
    assert COMPILER.start(WORD, b"ab").must_end


def test_marks_of_the_template_are_part_of_no_text() -> None:
    anything = COMPILER.start(Constraint("regex", "(?s:.)*"))
    assert not allowed(anything) & {vocabulary.render(())[0]}


def test_output_that_does_not_follow_is_a_failure() -> None:
    with pytest.raises(CoreError, match="does not follow"):
        COMPILER.start(WORD, b"ba")


async def test_what_can_be_kept_passes() -> None:
    checker = ConstraintChecker()
    for constraint in (PERSON, LIST, WORD):
        await checker.check(constraint, ONE)


@pytest.mark.parametrize(
    ("constraint", "field", "reason"),
    [
        (Constraint("json", '{"type": "nonsense"}'), "json_schema", "nonsense"),
        (Constraint("json", '{"uniqueItems": true}'), "json_schema", "uniqueItems"),
        (Constraint("json", '{"$ref": "#"}'), "json_schema", "no text satisfies it"),
        (Constraint("json", "no json"), "json_schema", "line 1 column 2"),
        (Constraint("regex", "(?=a)b"), "pattern", "look-ahead"),
        (Constraint("grammar", "start: missing"), "grammar", "missing"),
        (Constraint("grammar", 'start: "a" start'), "grammar", "Too many items"),  # never ends
        # These kill, or keep busy, whoever compiles them.
        (
            Constraint(
                "grammar",
                "start: x0\n"
                + "".join(f'x{i}: x{i + 1} "a"\n' for i in range(15_000))
                + 'x15000: "b"',
            ),
            "grammar",
            "too large",
        ),
        (
            Constraint(
                "json",
                json.dumps(
                    {
                        "allOf": [
                            {"type": "string", "pattern": f"^.*a.{{{i}}}b"} for i in range(10, 40)
                        ]
                    }
                ),
            ),
            "json_schema",
            "too large",
        ),
    ],
)
async def test_what_cannot_be_kept_is_refused_with_the_reason(
    constraint: Constraint, field: str, reason: str
) -> None:
    with pytest.raises(InvalidSyscall, match=reason) as refused:
        await ConstraintChecker().check(constraint, ONE)
    assert refused.value.field == f"body.format.{field}"


async def test_a_verdict_is_remembered() -> None:
    checker = ConstraintChecker()
    bad = Constraint("regex", "(")
    messages = []
    for _ in range(2):
        with pytest.raises(InvalidSyscall) as refused:
            await checker.check(bad, ONE)
        messages.append(refused.value.message)
    assert messages[0] == messages[1]
    assert checker.children == 1
