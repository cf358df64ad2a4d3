"""Constraints in the core process, over the loaded model's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from aios_workers.llm.constraint import Compiler, Matcher
from aios_workers.llm.core import Constraint
from aios_workers.llm.cores.llama.context import Context
from aios_workers.llm.cores.llama.library import Library
from aios_workers.llm.cores.llama.vocabulary import Vocabulary


class Matchers:
    """Starts matchers. The first one costs about 0.3 s: the table of all tokens."""

    def __init__(self, library: Library, context: Context) -> None:
        self._library = library
        self._context = context
        self._compiler: Compiler | None = None

    def start(self, constraint: Constraint, output_ids: Sequence[int]) -> Matcher:
        """Return a matcher that has read the output so far; see `Compiler.start`."""
        if self._compiler is None:
            # Shares the model with the context, which frees it.
            self._compiler = Vocabulary(self._library, self._context.model).compiler()
        return self._compiler.start(constraint, output_ids)
