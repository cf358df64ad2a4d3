"""What of a session's folder is told as a change, and of which name or kind none can be."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aios_broker.contract.errors import InvalidPath
from aios_workers.modules.tool.workspace.changes import Changes, KeptFile, changes_of
from aios_workers.modules.tool.workspace.names import refusal_of_name, shown_path
from aios_workers.modules.tool.workspace.patterns import (
    fixed_part,
    is_deep,
    matches,
    normal_pattern,
)
from aios_workers.modules.tool.workspace.walk import FoundFile

MOST_BYTES = 100


def placed(path: str, sha256: str = "a", foreign: str = "") -> KeptFile:
    return KeptFile(path, 3, 1, sha256, foreign)


def seen(path: str, sha256: str = "a", **fields: object) -> FoundFile:
    return FoundFile(path, sha256=sha256, size_bytes=1, content=b"x", **fields)  # type: ignore[arg-type]


def compared(before: list[KeptFile], now: list[FoundFile], **options: object) -> Changes:
    by_path = {one.path: one for one in before}
    return changes_of(by_path, now, most_bytes=MOST_BYTES, **options)  # type: ignore[arg-type]


def told(found: Changes) -> list[tuple[str, str]]:
    return [(one.shown.path, one.shown.state) for one in found.files]


def test_what_is_the_same_is_no_change_and_the_rest_is_told_by_path() -> None:
    found = compared(
        [placed("same"), placed("other"), placed("gone")],
        [seen("same"), seen("other", "b"), seen("d/new", "c")],
    )

    assert told(found) == [("/d/new", "added"), ("/gone", "removed"), ("/other", "changed")]
    assert [one.shown.version for one in found.files] == [0, 3, 3]


def test_nothing_below_what_cannot_be_looked_into_is_called_removed() -> None:
    """Else a folder that its owner closed, or put a link in place of, would be deleted."""
    before = [placed("d/a"), placed("d/e/b"), placed("da")]
    found = compared(before, [FoundFile("d", why="it is a link")])

    assert told(found) == [("/d", "refused"), ("/da", "removed")]
    assert told(compared(before, [FoundFile("", why="it may not be read")])) == [("/", "refused")]


def test_a_file_that_became_a_link_is_refused_and_not_removed() -> None:
    [one] = compared([placed("a")], [FoundFile("a", why="it is a link")]).files

    assert (one.shown.state, one.shown.why, one.placed) == (
        "refused",
        "it is a link",
        placed("a"),
    )


def test_what_is_not_the_agents_own_is_refused_whatever_became_of_it() -> None:
    before = [placed("shared/bob/a", foreign="bob's"), placed("shared/bob/b", foreign="bob's")]
    found = compared(
        before,
        [seen("shared/bob/a", "b"), seen("mnt/new"), seen("mnt2/new")],
        foreign={"mnt": "mounted"},
    )

    assert [(one.shown.path, one.shown.state, one.shown.why) for one in found.files] == [
        ("/mnt/new", "refused", "mounted"),
        ("/mnt2/new", "added", ""),
        ("/shared/bob/a", "refused", "bob's"),
        ("/shared/bob/b", "refused", "bob's"),
    ]


def test_what_is_ignored_is_counted_unless_it_was_put_there() -> None:
    found = compared(
        [placed(".cache/kept"), placed(".cache/gone")],
        [seen(".cache/kept", "b"), seen(".cache/x"), FoundFile(".cache/y", why="it is a link")],
        ignore=["/.cache"],
    )

    assert told(found) == [("/.cache/gone", "removed"), ("/.cache/kept", "changed")]
    assert found.ignored == 2


def test_only_what_is_asked_for_is_told() -> None:
    before = [placed("a.md"), placed("d/b.md"), placed("c.txt")]
    now = [seen("a.md", "b"), seen("new.txt")]

    assert told(compared(before, now, paths=["/**/*.md"])) == [
        ("/a.md", "changed"),
        ("/d/b.md", "removed"),
    ]
    assert told(compared(before, now, paths=["/d"])) == [("/d/b.md", "removed")]


def test_a_file_that_no_commit_takes_is_refused_in_words() -> None:
    large = FoundFile("large", size_bytes=MOST_BYTES + 1)
    [one] = compared([], [large]).files

    assert one.shown.state == "refused"
    assert "it has 101 bytes, and a commit takes files of 100" in one.shown.why


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "a/../b",
        "...x",
        "a\\b",
        "a\u200bb",
        "a\u202eb",
        "a\nb",
        "a\udcffb",
        "\u0301a",
        "cafe\u0301",
        "a ",
        "b.",
        "~x",
        "C:x",
        "a%2fb",
        "\ufe0fa",
        "x" * 256,
        "/".join("d" * 65),
    ],
)
def test_such_names_are_refused_in_words_and_shown_without_harm(path: str) -> None:
    assert refusal_of_name(path)
    assert shown_path(path).isprintable()


@pytest.mark.parametrize("path", ["a", "notes/plan.md", ".env", "caf\u00e9", "a b", "[x]", "-r"])
def test_other_names_are_not(path: str) -> None:
    assert refusal_of_name(path) == ""
    assert shown_path(path) == f"/{path}"


@pytest.mark.parametrize(
    ("pattern", "path", "is_meant"),
    [
        ("/", "/a/b", True),
        ("/notes", "/notes", True),
        ("/notes", "/notes/a/b.md", True),
        ("/notes", "/notes2", False),
        ("/notes/*.md", "/notes/a.md", True),
        ("/notes/*.md", "/notes/d/a.md", False),
        ("/notes/*", "/notes/d/a.md", False),
        ("/**/*.md", "/a.md", True),
        ("/**/*.md", "/d/e/a.md", True),
        ("/d/**", "/d/e/a.md", True),
        ("/d/**/x/**/y", "/d/1/x/2/3/y", True),
        ("/d/**/x/**/y", "/d/1/2/3/y", False),
        ("/?.md", "/ab.md", False),
        ("/a*b*c", "/abxbc", True),
        ("/a*b*c", "/abxb", False),
        ("/[a]", "/a", False),
        ("/[a]", "/[a]", True),
        ("/**/__pycache__/**", "/__pycache__", True),
        ("/**/__pycache__/**", "/d/__pycache__/a.pyc", True),
    ],
)
def test_patterns(pattern: str, path: str, is_meant: bool) -> None:  # noqa: FBT001
    assert matches(pattern, path) is is_meant


PART = st.sampled_from(["a", "b", "ab"])
WILD = st.sampled_from(["a", "b", "*", "?", "**"])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(WILD, min_size=1, max_size=5), st.lists(PART, min_size=1, max_size=6))
def test_what_a_pattern_means_lies_where_it_is_looked_for(
    wanted: list[str], parts: list[str]
) -> None:
    pattern, path = "/" + "/".join(wanted), "/" + "/".join(parts)
    if matches(pattern, path):
        fixed = fixed_part(pattern)
        assert path == fixed or path.startswith(fixed.rstrip("/") + "/")
        if not is_deep(pattern):
            assert path.rpartition("/")[0] == fixed.rstrip("/")


def test_a_pattern_that_is_made_to_take_long_does_not() -> None:
    assert not matches("/" + "*a" * 127, "/" + "a" * 126 + "b")
    assert not matches("/" + "**/a/" * 8 + "b", "/" + "a/" * 60 + "c")


@pytest.mark.parametrize("pattern", ["a/../b", "a**b", "", "a//b", "**/" * 9 + "x"])
def test_what_is_no_pattern_is_refused_by_field(pattern: str) -> None:
    with pytest.raises(InvalidPath) as caught:
        normal_pattern(pattern, "body.paths")
    assert caught.value.field == "body.paths"
