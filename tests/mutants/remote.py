"""Mutants of remote cores: who goes on when one fails, and where the parts of an answer meet."""

from tests.mutants.catalogue import Mutant

FALLBACK = "workers/aios_workers/llm/fallback.py"
FALLBACK_TEST = "tests/unit/test_fallback.py"
PREFILL = "workers/aios_workers/llm/cores/openai/prefill.py"
PREFILL_TEST = "tests/unit/test_openai_prefill.py"
ENGINE = "workers/aios_workers/llm/cores/llama/engine.py"
ENGINE_TEST = "tests/unit/test_llama_engine.py"
HANDLER = "workers/aios_workers/llm/handler.py"
KV_TEST = "tests/integration/test_kv_by_tenant.py"
ANSWER = "workers/aios_workers/llm/cores/openai/answer.py"
DEFAULTS = "workers/aios_workers/llm/cores/openai/defaults.py"
CORE = "workers/aios_workers/llm/cores/openai/openai_core.py"
CORE_TEST = "tests/integration/test_openai_habits.py"

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
    Mutant(
        "a slot's context is anybody's",
        ENGINE,
        "if self.kv_owner == kv_owner else 0",
        "if True else 0",
        ENGINE_TEST,
    ),
    Mutant(
        "a slot keeps whom it was read for before",
        ENGINE,
        "        slot.kv_owner = owner\n",
        "",
        ENGINE_TEST,
    ),
    Mutant(
        "SGLang is not told whose context it is",
        "workers/aios_workers/llm/cores/sglang/request.py",
        "if request.kv_owner:",
        "if False:",
        "tests/integration/test_sglang_core.py",
    ),
    Mutant(
        "a generation is nobody's",
        HANDLER,
        'run.kv_owner = "" if self._share_kv else syscall.tenant',
        'run.kv_owner = ""',
        KV_TEST,
    ),
    Mutant(
        "an endpoint's cache is told to all",
        HANDLER,
        "return told if self._share_kv else",
        "return told if True else",
        KV_TEST,
    ),
    Mutant(
        "what was asked for is left out",
        DEFAULTS,
        'if content.get("temperature") else',
        "if False else",
        CORE_TEST,
    ),
    Mutant(
        "a seed is always sent",
        CORE,
        "if request.asks_for_seed:",
        "if True:",
        CORE_TEST,
    ),
    Mutant(
        "thoughts in the middle are part of the answer",
        ANSWER,
        "if not self._may_think:",
        "if False:",
        CORE_TEST,
    ),
    Mutant(
        "a start does not wait for a busy endpoint",
        CORE,
        "except CoreBusy as busy:\n                pause_s",
        "except ZeroDivisionError as busy:\n                pause_s",
        CORE_TEST,
    ),
)
