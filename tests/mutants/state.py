"""The mutants of memory, storage, access and approvals."""

from tests.mutants.catalogue import LLM as WORKERS
from tests.mutants.catalogue import MIGRATIONS, Mutant

APPROVALS_TEST = "tests/integration/test_approvals.py"
PARKING_TEST = "tests/integration/test_parking.py"
ACCESS_TEST = "tests/integration/test_access.py"
MEMORY_TEST = "tests/integration/test_memory.py"
CRASH_TEST = "tests/faults/test_memory_crashes.py"
BLOCK_TEST = "tests/integration/test_memory_block.py"
STORAGE_TEST = "tests/integration/test_storage.py"
MODEL_TEST = "tests/integration/test_storage_properties.py"
MOUNT_TEST = "tests/integration/test_storage_mounts.py"
OPERATE_TEST = "tests/integration/test_storage_operate.py"
PATH_TEST = "tests/unit/test_paths.py"
SEARCH_TEST = "tests/integration/test_search.py"
MATRIX_TEST = "tests/integration/test_access_matrix.py::test_sql_alone_lets_in_only_who_was_let_in"
SHARE_TEST = "tests/integration/test_access_matrix.py::test_sql_alone_passes_on_only_what_one_has"
GRANTS_TEST = "tests/integration/test_access_properties.py"
RLS = "versions/20261126_0006_row_level_security.py"
GATE, BLOCK = "gate.py", "memory/block.lua"

STATE_MUTANTS = (
    Mutant("an approval is of any arguments", GATE,
           "       AND asked_sha256 = %(asked)s AND arguments_sha256 = %(sha)s\n", "",
           APPROVALS_TEST, WORKERS),
    Mutant("an approval is never used up", GATE, "SET state = 'used', used_at = now()",
           "SET state = 'approved'", PARKING_TEST, WORKERS),
    Mutant("an approval does not expire", GATE,
           "state = 'approved' AND expires_at > now()", "state = 'approved'", APPROVALS_TEST,
           WORKERS),
    Mutant("an edit is shown and not run", GATE,
           "return body_from(syscall.kind, row.arguments)", "return syscall.body", APPROVALS_TEST,
           WORKERS),
    Mutant("scratch space is everywhere", GATE,
           "if why.scratch and not (rule.of_agent and rule.rule == \"ask\"):", "if True:",
           APPROVALS_TEST, WORKERS),
    Mutant("one approves what it asked for", "store/approvals.py",
           "if decider.agent_id == row.agent_id:", "if False:", APPROVALS_TEST),
    Mutant("it is decided twice", "store/approvals.py",
           "if row.state in (\"approved\", \"denied\", \"used\"):", "if False:", APPROVALS_TEST),
    Mutant("decided jobs stay parked", "approval_duty.py",
           "words = await self._control.unpark([job for _, job in part], module=module)",
           "words = [\"done\" for _ in part]", PARKING_TEST, WORKERS),
    Mutant("the request of an ended job stays open", "approval_duty.py",
           "if not lives]", "if False]", PARKING_TEST, WORKERS),
    Mutant("the audit's hash leaves out who it was", "store/audit.py",
           "        line.actor, line.action,", "        line.action,", ACCESS_TEST),
    Mutant("a missing line is not missed", "store/audit.py", "if row.seq != seq + 1:",
           "if False:", ACCESS_TEST),
    Mutant("an expired token is good", "queues/tokens.py",
           "identity.expires_at <= time.time()", "False", ACCESS_TEST),
    Mutant("everybody registers", "access/identity.py", "        if row.has:\n",
           "        if False:\n", ACCESS_TEST, WORKERS),
    Mutant("any member changes a group", "access/groups.py",
           "if row.role != \"admin\" and not await is_administrator(cursor, asked.agent):",
           "if False:", ACCESS_TEST, WORKERS),
    Mutant("who may share grants anything", "access/grants.py",
           "lacking = sorted({verb, *given} - verbs)", "lacking = sorted({verb} - verbs)",
           ACCESS_TEST, WORKERS),
    Mutant("a change leaves the old note in its block", "memory/changing.py",
           "token = await self._desk.ram.invalidate(owner, [note.id])\n        written",
           "token = await self._desk.ram.look(owner)\n        written", CRASH_TEST, WORKERS),
    Mutant("effects are not found again", "store/effects.py",
           "return None if found is None else _decoder.decode(found.result)", "return None",
           MEMORY_TEST),
    Mutant("an evolution that was built upon is undone", "memory/evolution.py",
           "if note.version != before[each]]", "if False]", MEMORY_TEST, WORKERS),
    Mutant("a note's reader may write", "memory/desk.py", "if verb not in verbs:", "if False:",
           MEMORY_TEST, WORKERS),
    Mutant("a recalled text is too long", "memory/recall.py",
           "if tokens <= max_tokens:\n            return", "if True:\n            return",
           "tests/unit/test_recall.py", WORKERS),
    Mutant("references close together count twice", BLOCK,
           "if not last or now - last > b.correlated then", "if true then", BLOCK_TEST),
    Mutant("a swap ends at the high watermark", BLOCK,
           "b.used - b.low * b.limit", "b.used - b.high * b.limit", BLOCK_TEST),
    Mutant("a lock keeps nobody out", "storage/namespace.py",
           "if file.is_locked and file.locked_by != work.asked.agent.id:", "if False:",
           STORAGE_TEST, WORKERS),
    Mutant("versions are kept for ever", "storage/versions.py",
           "AND version <= (SELECT version FROM f) - %(keep)s", "AND false", MODEL_TEST, WORKERS),
    Mutant("content that nobody has is charged on", "storage/versions.py",
           "- (SELECT coalesce(sum(size_bytes), 0) FROM went)", "- 0", MODEL_TEST, WORKERS),
    Mutant("a directory is moved into itself", "storage/moves.py",
           "if is_within(target.path, spot.path):\n        raise InvalidPath(\"a directory cannot "
           "be moved", "if False:\n        raise InvalidPath(\"a directory cannot be moved",
           MODEL_TEST, WORKERS),
    Mutant("grants on a directory end at its door", "storage/namespace.py",
           "objects = [(\"directory\", str(each)) for each in ancestors]",
           "objects = [(\"directory\", str(each)) for each in ancestors[-1:]]", MODEL_TEST,
           WORKERS),
    Mutant("a link is followed", "storage/host.py",
           "_READ = os.O_RDONLY | os.O_NOFOLLOW |", "_READ = os.O_RDONLY |", MOUNT_TEST, WORKERS),
    Mutant("a linked directory is entered", "storage/host.py",
           "_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW |",
           "_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY |", MOUNT_TEST, WORKERS),
    Mutant("a plan is made anew after its approval", "storage/operating.py",
           "        if kept is not None:\n", "        if False:\n", OPERATE_TEST, WORKERS),
    Mutant("a plan asks nobody", "storage/operating.py", "    if not lossy:\n", "    if True:\n",
           OPERATE_TEST, WORKERS),
    Mutant("look-alikes of slashes are names", "contract/paths.py",
           "if what is None and _reads_as_separator(character):", "if False:", PATH_TEST),
    Mutant("dots lead up", "contract/paths.py", "if part == \".\" or part.startswith(\"..\"):",
           "if False:", PATH_TEST),
    Mutant("search finds more than k", "search/ranking.py", "return fuse(lists)[: wanted.k]",
           "return fuse(lists)", SEARCH_TEST, WORKERS),
    Mutant("a new text keeps the old vector", "store/notes.py",
           "words = to_tsvector('english', %s), model_id = NULL, vector = NULL\n    WHERE n.id",
           "words = to_tsvector('english', %s)\n    WHERE n.id", SEARCH_TEST),
    Mutant("what has gone from the host is still found", "storage/watching.py",
           "if is_whole and path not in wanted]", "if False]",
           "tests/integration/test_mount_search.py", WORKERS),
    Mutant("a file of the host is read once for ever", "storage/watching.py",
           "return known is None or (known.size_bytes, known.changed_at) != seen",
           "return known is None", "tests/integration/test_mount_search.py", WORKERS),
    Mutant("the map keeps who has left", "access/groups_map.py",
           "gone = [agent for agent in shown if agent not in truth]", "gone = []", GRANTS_TEST,
           WORKERS),
    Mutant("a right ends in the middle of its use", "versions/20261126_0010_grants_at_once.py",
           "set_rules(held(\"administer\"), held(\"share\"))",
           "set_rules(by_row(\"administer\"), by_row(\"share\"))", ACCESS_TEST, MIGRATIONS),
    Mutant("a grant goes before what stands in for it", "store/grants.py",
           "    whose = owner or agent\n    await cursor.execute(_PUT",
           "    whose = owner or agent\n"
           "    await drop_grants(cursor, whose, kind, object_id, to)\n"
           "    await cursor.execute(_PUT", GRANTS_TEST),
    Mutant("an expired grant lets in", RLS,
           "(g.expires_at IS NULL OR g.expires_at > now()) AND ", "", MATRIX_TEST, MIGRATIONS),
    Mutant("a grant is of every verb", RLS, " AND g.verbs && aios_verbs(verb)", "", MATRIX_TEST,
           MIGRATIONS),
    Mutant("everybody is a member", RLS, "m.agent_id = aios_agent_id() AND p", "p", MATRIX_TEST,
           MIGRATIONS),
    Mutant("whose note it is does not count", RLS,
           'return f"{OWN} OR {blocks} OR {notes}"', 'return "true"', MATRIX_TEST, MIGRATIONS),
    Mutant("whose file it is does not count", RLS, "{OWN} OR {among('directory_id'",
           "true OR {among('directory_id'", MATRIX_TEST, MIGRATIONS),
    Mutant("rows are not guarded", RLS, "ENABLE ROW LEVEL SECURITY", "DISABLE ROW LEVEL SECURITY",
           MATRIX_TEST, MIGRATIONS),
    Mutant("who may share passes on more than it has", RLS,
           "            AND NOT EXISTS (SELECT FROM unnest(verbs) v\n"
           "                            WHERE NOT aios_holds(kind, object_id, v)))",
           "            )", SHARE_TEST, MIGRATIONS),
)  # fmt: skip
