"""Paths: what may be one has one form, what may not leads nowhere."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.errors import InvalidPath
from aios_broker.contract.paths import (
    ROOT,
    below,
    is_within,
    normal_path,
    parent_of,
    prefixes_of,
)
from tests.hostile_paths import HOSTILE_PATHS


def test_the_corpus_has_at_least_two_hundred_cases() -> None:
    assert len(HOSTILE_PATHS) >= 200


@pytest.mark.parametrize("number", range(len(HOSTILE_PATHS)))
def test_a_hostile_path_is_refused_by_name(number: int) -> None:
    with pytest.raises(InvalidPath) as caught:
        normal_path(HOSTILE_PATHS[number], "body.to")
    assert (caught.value.field, bool(caught.value.remedy)) == ("body.to", True)


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("/", "/"),
        ("a", "/a"),
        ("/a", "/a"),
        ("a/b/", "/a/b"),
        (".hidden", "/.hidden"),
        ("a.b.c", "/a.b.c"),
        ("with space/x y", "/with space/x y"),
        ("u\u0308ber", "/\u00fcber"),
        ("\u65e5\u8a18/2026", "/\u65e5\u8a18/2026"),
        ("100%", "/100%"),
        ("ab:c", "/ab:c"),
        ("x/~y", "/x/~y"),
        ("\U0001f600", "/\U0001f600"),
        ("-rf", "/-rf"),
        ("x" * 255, "/" + "x" * 255),
    ],
)
def test_a_plain_name_is_taken(given: str, normal: str) -> None:
    assert normal_path(given) == normal
    assert normal_path(normal) == normal


@given(st.text(max_size=40))
def test_what_is_taken_stays_below_the_root(text: str) -> None:
    try:
        path = normal_path(text)
    except InvalidPath:
        return
    assert path == unicodedata.normalize("NFC", path)
    assert normal_path(path) == path
    parts = PurePosixPath(path).parts
    assert parts[0] == ROOT
    assert not {"..", "."} & set(parts[1:])
    assert "".join(f"/{part}" for part in parts[1:]) in (path, "")
    plain = unicodedata.normalize("NFKC", path)
    assert plain.count("/") == path.count("/")
    assert ".." not in PurePosixPath(plain).parts


def test_the_ways_around_a_path() -> None:
    assert (parent_of("/a/b"), parent_of("/a"), parent_of(ROOT)) == ("/a", ROOT, ROOT)
    assert prefixes_of("/a/b") == [ROOT, "/a", "/a/b"]
    assert prefixes_of(ROOT) == [ROOT]
    assert (below("/a"), below(ROOT)) == ("/a/", ROOT)
    assert is_within("/a/b", "/a")
    assert not is_within("/ab", "/a")
