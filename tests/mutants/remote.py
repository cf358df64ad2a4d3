"""Mutants of remote cores: who goes on when one fails, and where the parts of an answer meet."""

from tests.mutants.catalogue import Mutant

FALLBACK = "workers/aios_workers/llm/fallback.py"
FALLBACK_TEST = "tests/unit/test_fallback.py"
PREFILL = "workers/aios_workers/llm/cores/openai/prefill.py"
PREFILL_TEST = "tests/unit/test_openai_prefill.py"

REMOTE_MUTANTS = (
    Mutant(
        "a syscall comes back to who gave it away",
        FALLBACK,
        "not in (core.name, *tried)",
        "not in (core.name,)",
        FALLBACK_TEST,
    ),
    Mutant(
        "another model goes on with what was begun",
        FALLBACK,
        "if card.model != core.model:",
        "if False:",
        FALLBACK_TEST,
    ),
    Mutant(
        "what was read begins anew",
        FALLBACK,
        "return reads or not progress.streamed",
        "return True",
        FALLBACK_TEST,
    ),
    Mutant(
        "a beginning that comes again stays",
        PREFILL,
        "return held.removeprefix(self._beginning)",
        "return held",
        PREFILL_TEST,
    ),
)
