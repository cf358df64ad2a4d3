"""Paths that must lead nowhere: more than 200, by what each tries."""

from __future__ import annotations

from itertools import product

_UPS = (
    "..",
    "..a/b",
    "../",
    "../..",
    "/..",
    "a/..",
    "a/../..",
    "a/../../b",
    "./..",
    "a/./../b",
    "..a/..",
    "..../x",
    "...",
    "a/...",
    ".. /x",
    " ../x",
    "../ x",
    "a/.. /b",
)
_DOTS = (".", "./", "./a", "a/.", "a/./b", "/.", "a/b/.", "././a")
_EMPTY = ("//", "//a", "a//b", "a//", "///", "/a//b", " ", "  ", "a/ /b", "\t", "/ ", "a/\n/b")
_ENDS = ("a ", " a", "a.", "a./b", "a /b", "a/ b", "a/b.", "a..", "con.", "a. ")
_SEPARATORS = (
    "\\",
    "\u2044",
    "\u2215",
    "\u2216",
    "\u29f5",
    "\u29f8",
    "\u29f9",
    "\uff0f",
    "\uff3c",
    "\ufe68",
    "\u2571",
    "\u2572",
    "\u27cb",
    "\u27cd",
    "\u2e4a",
)
_DOT_LIKE = (
    "\u2024",
    "\u2025",
    "\u2026",
    "\uff0e",
    "\ufe52",
    "\ufe19",
    "\ua4f8",
    "\ua4fa",
    "\u0701",
    "\u0702",
)
_CONTROLS = tuple(map(chr, (*range(0x00, 0x20, 3), 0x7F, 0x80, 0x85, 0x9F)))
_INVISIBLE = (
    "\u200b",
    "\u200c",
    "\u200d",
    "\u200e",
    "\u200f",
    "\u202a",
    "\u202b",
    "\u202d",
    "\u202e",
    "\u2060",
    "\u2066",
    "\u2069",
    "\ufeff",
    "\u2028",
    "\u2029",
    "\u00ad",
    "\u061c",
    "\u180e",
    "\ufff9",
    "\u034f",
    "\u115f",
    "\u1160",
    "\u17b4",
    "\u180b",
    "\u2065",
    "\u2800",
    "\u3164",
    "\ufe00",
    "\ufe0f",
    "\uffa0",
    "\U000e0041",
    "\U000e01ef",
)
_ENCODED = (
    "%2e%2e/x",
    "%2E%2E%2Fx",
    "..%2fx",
    "a%2f..%2fb",
    "%252e%252e%252fx",
    "a%00b",
    "a%5cb",
    "%2e%2e",
    "a/%2e%2e/b",
    "..%5c..%5cx",
    "%2f%2fetc",
)
_HOMES = (
    "~",
    "~/x",
    "~root",
    "~root/.ssh",
    "C:",
    "C:/x",
    "c:x",
    "C:\\x",
    "\\\\host\\share",
    "z:/a/b",
)
_SURROGATES = ("\ud800", "a\udfff", "\udc2e\udc2e/x", "a/\ud83d/b")
_LONG = (
    "x" * 256,
    "a/" + "y" * 256,
    "\u00fc" * 128,
    "x" * 2_000,
    "a/" * 512 + "b",
    "a/" * 64 + "b",
    "/".join("d" * 200 for _ in range(6)),
)
_COMBINING = ("\u0301", "a/\u0338b", "\u20e0x")
_NOT_CHARACTERS = ("\ufdd0", "\uffff", "\ufffe", "\U0001ffff", "a\U0010fffe")

HOSTILE_PATHS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *_UPS,
            *_DOTS,
            *_EMPTY,
            *_ENDS,
            *_ENCODED,
            *_HOMES,
            *_SURROGATES,
            *_LONG,
            *_COMBINING,
            *_NOT_CHARACTERS,
            *(
                f"{left}{separator}{right}"
                for separator, (left, right) in product(_SEPARATORS, (("..", "x"), ("a", "..")))
            ),
            *(f"{dot}{dot}/x" for dot in _DOT_LIKE),
            *(f"a/{dot}{dot}" for dot in _DOT_LIKE),
            *(f"a{control}b" for control in _CONTROLS),
            *(f"{control}" for control in _CONTROLS),
            *(f"a{sign}b" for sign in _INVISIBLE),
            *(f".{sign}./x" for sign in _INVISIBLE),
        )
    )
)
