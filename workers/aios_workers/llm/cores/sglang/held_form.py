"""Reads an answer as it comes from a server, and lets nothing pass that leaves its form."""

from __future__ import annotations

from dataclasses import replace

from aios_broker.contract.errors import CoreError
from aios_workers.llm.constraint import Matcher
from aios_workers.llm.core import Step


class HeldForm:
    """One answer against its form, from its first id on."""

    def __init__(self, matcher: Matcher, grammar_backend: str | None) -> None:
        self._matcher = matcher
        self._backend = grammar_backend

    def take(self, step: Step) -> Step:
        """Return the step if the answer keeps its form; where nothing can be added, as its end.

        Raises:
            CoreError: It does not.
            InvalidSyscall: Reading on costs more than is allowed.
        """
        for token in step.ids:
            if self._matcher.must_end:
                raise self._left("goes on behind the end of its form")
            try:
                self._matcher.add(token)
            except CoreError as error:
                raise self._left(f"leaves its form with token {token}") from error
        if self._matcher.must_end:
            return replace(step, finish_reason="stop")
        if step.finish_reason == "stop" and not self._matcher.may_end:
            raise self._left("ends before its form does")
        return step

    def _left(self, how: str) -> CoreError:
        return CoreError(
            f"the SGLang server's answer {how} (its grammar backend is {self._backend})",
            remedy="simplify the form, or start the server with --grammar-backend llguidance",
        )
