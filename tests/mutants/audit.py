"""The mutants of the audit log, and of what no text may have."""

from tests.mutants.catalogue import Mutant

AUDIT = "broker/aios_broker/access/audit.py"
AUDIT_TEST = "tests/integration/test_audit.py"
AUDIT_FOLDER_TEST = "tests/integration/test_audit_folder.py"
JSON_TEST = "tests/unit/test_json_text.py"
PATH_TEST = "tests/unit/test_paths.py"
PRINTABLE_TEST = "tests/unit/test_printable.py"

AUDIT_MUTANTS = (
    Mutant(
        "the audit's hash leaves out who it was",
        AUDIT,
        "told = (row.tenant, row.actor, row.action,",
        "told = (row.tenant, row.action, row.action,",
        AUDIT_TEST,
    ),
    Mutant(
        "the audit's hash needs no key",
        AUDIT,
        "return hmac.new(key, msgspec",
        'return hmac.new(b"known", msgspec',
        AUDIT_TEST,
    ),
    Mutant(
        "a missing line is not missed",
        AUDIT,
        "if row.seq > self._next:",
        "if False:",
        AUDIT_TEST,
    ),
    Mutant(
        "a line before the first one is passed over",
        AUDIT,
        "_LOWEST if walks[-1].first == 1 else walk.first",
        "walk.first",
        AUDIT_TEST,
    ),
    Mutant(
        "a line may follow any other",
        AUDIT,
        "if row.previous_hash != self.hash and (",
        "if False and (",
        AUDIT_TEST,
    ),
    Mutant(
        "an emptied audit log is whole",
        AUDIT,
        "if self._noted is None or self._noted.seq < self._next:",
        "if self._noted is None or self.lines == 0:",
        AUDIT_TEST,
    ),
    Mutant(
        "what came in place of lines that were cut off is taken",
        AUDIT,
        "and self._noted.hash != row.hash:",
        "and False:",
        AUDIT_TEST,
    ),
    Mutant(
        "anybody begins a new chain",
        AUDIT,
        "in await read(_BEGUN, ()) if _is_proven(key, row)), None)",
        "in await read(_BEGUN, ())), None)",
        AUDIT_TEST,
    ),
    Mutant(
        "who begins a new chain gives up all proof of the lines before",
        AUDIT,
        "found = Beginning(lines, proven)",
        "found = Beginning(lines)",
        AUDIT_TEST,
    ),
    Mutant(
        "another line takes the place of the last proven one",
        AUDIT,
        "if self.hash != expected.hash:",
        "if False:",
        AUDIT_TEST,
    ),
    Mutant(
        "a forged line is noted",
        AUDIT,
        "            _require_proven(_key_of(cursor), last)\n",
        "",
        AUDIT_TEST,
    ),
    Mutant(
        "the kernel builds upon a forged line",
        AUDIT,
        "    last, role = await _take_turn(cursor)\n    _require_proven(key, last)\n",
        "    last, role = await _take_turn(cursor)\n",
        AUDIT_TEST,
    ),
    Mutant(
        "an older line is noted over a newer one",
        "broker/aios_broker/audit_folder.py",
        "if noted is None or line.seq > noted.seq:",
        "if True:",
        AUDIT_FOLDER_TEST,
    ),
    Mutant(
        "the audit log's key is readable to others",
        "broker/aios_broker/audit_folder.py",
        "os.O_CLOEXEC, 0o600)",
        "os.O_CLOEXEC, 0o644)",
        AUDIT_FOLDER_TEST,
    ),
    Mutant(
        "a NUL behind an escaped backslash passes",
        "broker/aios_broker/contract/json_text.py",
        r'rb"(?<!\\)(?:\\\\)*+\\u0000"',
        r'rb"(?<!\\)\\u0000"',
        JSON_TEST,
    ),
    Mutant(
        "a colon that is written otherwise hides a key twice",
        "broker/aios_broker/contract/json_text.py",
        'count += escapes.count(b"\\\\u003a") + escapes.count(b"\\\\u003A")',
        "pass",
        JSON_TEST,
    ),
    Mutant(
        "brackets in texts are levels",
        "broker/aios_broker/contract/json_text.py",
        "data = _without_escapes(data)",
        "pass",
        JSON_TEST,
    ),
    Mutant(
        "a key twice passes",
        "broker/aios_broker/contract/json_text.py",
        "if key in seen:",
        "if False:",
        JSON_TEST,
    ),
    Mutant(
        "a path may have an invisible character",
        "broker/aios_broker/contract/paths.py",
        "if INVISIBLE.match(character):",
        "if False:",
        PATH_TEST,
    ),
    Mutant(
        "a selector of variants hides anywhere",
        "broker/aios_broker/contract/printable.py",
        r"\ufe00-\ufe0f\uffa0",
        r"\uffa0",
        PRINTABLE_TEST,
    ),
)
