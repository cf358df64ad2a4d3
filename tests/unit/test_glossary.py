"""Classes, files and folders are named by the field's words and the glossary's; by no others.

`tests/data/field_words.txt` has the field's: what a reader who knows queues, databases and language
models, and not this project, takes as it is meant. A class, file or folder with a word of neither
list fails here: use the field's word for the thing, or explain the new one in `docs/glossary.md`.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(ROOT.glob("*/aios_*/**/*.py"))
SOURCES = [*FILES, *ROOT.glob("*/aios_*/**/*.lua"), *ROOT.glob("migrations/**/*.py")]
CAPITALS = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]+")


def singular(word: str) -> str:
    """Return the word without its plural's ending; twice the same for both numbers is enough."""
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "ches", "shes", "xes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def names() -> Iterator[tuple[str, list[str]]]:
    """Yield every class, file and folder of the product, with the words that it is made of."""
    for path in FILES:
        for part in path.relative_to(ROOT).with_suffix("").parts[2:]:
            if not part.startswith("__"):
                yield part, part.split("_")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                yield node.name, CAPITALS.findall(node.name)


def field_words() -> set[str]:
    text = (ROOT / "tests" / "data" / "field_words.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {word for line in lines for word in line.split()}


def glossary() -> set[str]:
    """Return the terms of the glossary: its first column, a row may have several."""
    rows = re.findall(
        r"^\| (.+?) \|", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.M
    )
    return {term for row in rows[2:] for term in row.lower().split(", ")}


def used() -> dict[str, set[str]]:
    """Return the words of all names, each with the names that it is in."""
    found = defaultdict(set)
    for name, words in names():
        for word in words:
            found[singular(word.lower())].add(name)
    return found


def test_every_word_of_a_name_is_the_fields_or_explained() -> None:
    explained = {singular(word) for term in glossary() for word in term.split()}
    known = {singular(word) for word in field_words()} | explained

    assert {word: sorted(where) for word, where in used().items() if word not in known} == {}


def test_no_word_is_in_both_lists() -> None:
    explained = {singular(word) for term in glossary() for word in term.split()}
    assert sorted({singular(word) for word in field_words()} & explained) == []


def test_every_word_of_the_field_is_used() -> None:
    said = used()
    assert sorted(word for word in field_words() if singular(word) not in said) == []


def test_every_word_of_the_glossary_is_used() -> None:
    text = "\n".join(path.read_text(encoding="utf-8").lower() for path in SOURCES)
    said = {singular(word) for word in re.findall(r"[a-z0-9]+", text)}

    unused = {
        term for term in glossary() if not all(singular(word) in said for word in term.split())
    }
    assert unused == set()
