"""What of a note and of a part of a file is searched: the text of its vector, and its words.

Vectors are of the text alone, so that a query in a person's own words lies near it. Words are by
Postgres' `english` configuration; those that a note is labelled with count for more.
"""

from __future__ import annotations

from collections.abc import Sequence

# The column `words` of a note, of the parameters labels and content.
NOTE_WORDS = (
    "setweight(to_tsvector('english', %(labels)s), 'A') || to_tsvector('english', %(content)s)"
)
CHUNK_WORDS = "to_tsvector('english', %(text)s)"  # of a part of a file


def note_labels(keywords: Sequence[str], tags: Sequence[str], context: str) -> str:
    """Return what a note is labelled with as one text."""
    return " ".join([*keywords, *tags, context]).strip()


def note_text(content: str, keywords: Sequence[str], tags: Sequence[str], context: str) -> str:
    """Return the text that a note's vector is made of: labels first, long content is cut."""
    labels = note_labels(keywords, tags, context)
    return f"{labels}\n{content}" if labels else content
