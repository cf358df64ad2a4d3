"""The mutants of shared KV states: what must be noticed before a wrong state is used."""

from tests.mutants.catalogue import LLM, Mutant

FILE, FOLDER = "llm/llama/state_file.py", "llm/llama/state_folder.py"
STORE, ENGINE, RULE = (f"llm/llama/{name}.py" for name in ("state_store", "engine", "state_rule"))
FOLDER_TEST = "tests/integration/test_state_folder.py"
ENGINE_TEST = "tests/unit/test_llama_engine_states.py"
RULE_TEST = "tests/unit/test_state_rule.py"

KV_STATE_MUTANTS = (
    Mutant("kv: a damaged state is used", FILE, "!= head.checksum:", "!= head.checksum and False:",
           FOLDER_TEST, LLM),
    Mutant("kv: the checksum leaves out the ids", FILE,
           "checksum = zlib.crc32(state.data, zlib.crc32(ids, zlib.crc32(fields)))",
           "checksum = zlib.crc32(state.data, zlib.crc32(fields))", FOLDER_TEST, LLM),
    Mutant("kv: another model's state is used", FILE, "if writer != key:", "if False:",
           FOLDER_TEST, LLM),
    Mutant("kv: a longer file is used", FILE, "if size_bytes != expected_bytes:",
           "if size_bytes < expected_bytes:", FOLDER_TEST, LLM),
    Mutant("kv: a state of other tokens is used", FOLDER,
           "shared_prefix_tokens(head.ids, known) <= beyond_tokens", "False", FOLDER_TEST, LLM),
    Mutant("kv: a half file has its name", FOLDER,
           "name = f\"{self._owner(request_id)}-{tokens}\"\n"
           "        temporary = self.path / f\"{name}.{uuid.uuid4().hex}.tmp\"",
           "name = f\"{self._owner(request_id)}-{tokens}\"\n"
           "        temporary = self.path / f\"{name}.kv\"", FOLDER_TEST, LLM),
    Mutant("kv: the budget is not kept", FOLDER,
           "if used_bytes + size_bytes <= self.max_bytes:\n                    break", "break",
           FOLDER_TEST, LLM),
    Mutant("kv: the room is not taken before the bytes come", FOLDER,
           "os.ftruncate(reserved.fd, size_bytes)", "pass", FOLDER_TEST, LLM),
    Mutant("kv: a use does not count", FOLDER, "os.utime(entry.path)", "pass", FOLDER_TEST, LLM),
    Mutant("kv: those that were used last go first", FOLDER, "key=lambda entry: entry.used_at)",
           "key=lambda entry: -entry.used_at)", FOLDER_TEST, LLM),
    Mutant("kv: older states of a request stay", FOLDER,
           "if not entry.being_written and entry.path != reserved.final:", "if False:",
           FOLDER_TEST, LLM),
    Mutant("kv: files without a writer stay", FOLDER,
           "MAX_WRITING_S if entry.being_written else MAX_AGE_S",
           "1e9 if entry.being_written else MAX_AGE_S", FOLDER_TEST, LLM),
    Mutant("kv: a failed write leaves its file", FOLDER,
           "except BaseException:\n            reserved.temporary.unlink(missing_ok=True)",
           "except BaseException:", FOLDER_TEST, LLM),
    Mutant("kv: the dead are company", FOLDER, "if not _lock(fd, fcntl.LOCK_SH):", "if True:",
           FOLDER_TEST, LLM),
    Mutant("kv: a folder open to others is used", FOLDER, "& 0o077:", "& 0:", FOLDER_TEST, LLM),
    Mutant("kv: threads do not matter", STORE,
           "settings = (fingerprint, shape.threads,", "settings = (fingerprint,",
           ENGINE_TEST, LLM),
    Mutant("kv: slots do not matter", STORE, "exact_resume, shape.slots)", "exact_resume)",
           ENGINE_TEST, LLM),
    Mutant("kv: what llama.cpp refused counts as read", STORE, "        if restored:",
           "        if True:", ENGINE_TEST, LLM),
    Mutant("kv: a refused file stays", STORE,
           "self._remove(entry)\n", "pass\n", ENGINE_TEST, LLM),
    Mutant("kv: a state that is coming is not waited for", STORE,
           "if not coming or", "if True or", ENGINE_TEST, LLM),
    Mutant("kv: it is written although nobody wants it", STORE,
           "if not self._folder.has_company():", "if False:", ENGINE_TEST, LLM),
    Mutant("kv: what does not pay is written", STORE, "or not self._pays(state):", "or False:",
           ENGINE_TEST, LLM),
    Mutant("kv: an error of the disk reaches the engine", STORE,
           "except OSError as error:\n            self._fail(\"cannot be looked for\", error)",
           "except ZeroDivisionError as error:\n"
           "            self._fail(\"cannot be looked for\", error)", ENGINE_TEST, LLM),
    Mutant("kv: the files of what has ended stay", ENGINE,
           "            slot.running = None\n"
           "            self.shared.drop(generation.request.request_id)",
           "            slot.running = None", ENGINE_TEST, LLM),
    Mutant("kv: what was cut before its first token loses its file", ENGINE,
           "elif slot.running.has_answered:", "else:", ENGINE_TEST, LLM),
    Mutant("kv: what runs is not left to the next process", ENGINE,
           "if slot.running is not None and slot.ids:\n                yield", "if False:\n"
           "                yield", ENGINE_TEST, LLM),
    Mutant("kv: what has a file is written again at the end", ENGINE, "if not state.shared:",
           "if True:", ENGINE_TEST, LLM),
    Mutant("kv: a shorter state is preferred", ENGINE,
           "beyond_tokens=max(held_tokens, kept_tokens)", "beyond_tokens=0", ENGINE_TEST, LLM),
    Mutant("kv: writing needs no margin", RULE, ">= WRITE_MARGIN * file_ms", ">= file_ms",
           RULE_TEST, LLM),
    Mutant("kv: a slow disk is not noticed", RULE,
           "self.write_ms_per_mb = _averaged(self.write_ms_per_mb, size_bytes, took_ms)", "pass",
           RULE_TEST, LLM),
    Mutant("kv: a slow disk is never tried again", RULE, "self.write_ms_per_mb *= 1", "_ = 1",
           RULE_TEST, LLM),
)  # fmt: skip
