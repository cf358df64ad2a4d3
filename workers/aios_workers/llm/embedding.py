"""What all cores that embed have in common. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aios_broker.contract.errors import ContextTooLong, InvalidSyscall
from aios_workers.llm.core import CoreInfo


def check_texts(
    texts: Sequence[str], tokens: Sequence[int], info: CoreInfo, *, first: int = 0
) -> None:
    """Refuse texts that cannot be embedded. `first`: the place of the first of them.

    Raises:
        InvalidSyscall: a text is empty.
        ContextTooLong: a text has more tokens than the context.
    """
    for place, (text, count) in enumerate(zip(texts, tokens, strict=True), first):
        if not text:
            raise InvalidSyscall(
                "an empty text has no embedding",
                field=f"body.texts[{place}]",
                remedy="leave it out",
            )
        if count > info.context_tokens:
            raise ContextTooLong(
                f"the text has at least {count} tokens, the context of core {info.model!r} holds "
                f"{info.context_tokens}",
                field=f"body.texts[{place}]",
                remedy="split the text",
            )


def unit_vector(values: Sequence[float]) -> tuple[float, ...]:
    """Return a vector of the same direction and of length 1."""
    length = math.sqrt(math.fsum(value * value for value in values))
    return tuple(value / length for value in values)
