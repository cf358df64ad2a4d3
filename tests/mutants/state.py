"""The mutants of memory, storage, access and approvals."""

from tests.mutants.catalogue import Mutant

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
POLICIES = "migrations/schema/policies.sql"
FUNCTIONS = "migrations/schema/functions.sql"
LEASE_TEST = "tests/integration/test_decided_leases.py"
COST_TEST = "tests/integration/test_one_transaction.py"
DECLARED_TEST = "tests/unit/test_operations.py"

STATE_MUTANTS = (
    Mutant(
        "an approval is of any arguments",
        "workers/aios_workers/approvals/service.py",
        "       AND asked_sha256 = %(asked)s AND arguments_sha256 = %(sha)s\n",
        "",
        APPROVALS_TEST,
    ),
    Mutant(
        "an approval is never used up",
        "workers/aios_workers/approvals/service.py",
        "SET state = 'used', used_at = now()",
        "SET state = 'approved'",
        PARKING_TEST,
    ),
    Mutant(
        "an approval does not expire",
        "workers/aios_workers/approvals/service.py",
        "state = 'approved' AND expires_at > now()",
        "state = 'approved'",
        APPROVALS_TEST,
    ),
    Mutant(
        "an edit is shown and not run",
        "workers/aios_workers/approvals/service.py",
        "body = body_from(syscall.kind, row.arguments)\n",
        "body = syscall.body\n",
        APPROVALS_TEST,
    ),
    Mutant(
        "a decision is not marked",
        "broker/aios_broker/queues/lua/operator/unpark.lua",
        "redis.call('HSET', job, 'aios_decided', '1')",
        "",
        LEASE_TEST,
    ),
    Mutant(
        "a worker is not told of a decision",
        "broker/aios_broker/queues/lua/worker/claim.lua",
        "job.decided = past[6] or ''",
        "job.decided = ''",
        LEASE_TEST,
    ),
    Mutant(
        "a new life is decided as the last one was",
        "broker/aios_broker/queues/lua/shared/lib.lua",
        "'aios_reply', 'aios_decided', 'aios_tried')",
        "'aios_reply')",
        LEASE_TEST,
    ),
    Mutant(
        "what was decided is not looked for",
        "workers/aios_workers/modules/operation.py",
        "if decided and self.irreversible:",
        "if False:",
        APPROVALS_TEST,
    ),
    Mutant(
        "each run looks for a decision",
        "workers/aios_workers/modules/operation.py",
        "if decided and self.irreversible:",
        "if self.irreversible:",
        COST_TEST,
    ),
    Mutant(
        "nobody is asked",
        "workers/aios_workers/approvals/service.py",
        "if not await self._asks(cursor, agent, why):",
        "if True:",
        APPROVALS_TEST,
    ),
    Mutant(
        "what was decided and comes anew is parked for good",
        "workers/aios_workers/approvals/service.py",
        "DO UPDATE SET resumed_at = NULL",
        "DO UPDATE SET resumed_at = now()",
        APPROVALS_TEST,
    ),
    Mutant(
        "an operation takes what it does not declare",
        "workers/aios_workers/modules/operation.py",
        "if why.operation not in asked.irreversible:",
        "if False:",
        DECLARED_TEST,
    ),
    Mutant(
        "an effect is not entered",
        "workers/aios_workers/modules/operation.py",
        "        await work.cursor.execute(_ENTER, entry)\n",
        "",
        APPROVALS_TEST,
    ),
    Mutant(
        "a second run leaves undone what follows",
        "workers/aios_workers/modules/operation.py",
        "if after is not None:",
        "if False:",
        GRANTS_TEST,
    ),
    Mutant(
        "what is to follow is forgotten",
        "workers/aios_workers/modules/operation.py",
        "    await work.follow()\n",
        "",
        COST_TEST,
    ),
    Mutant(
        "a connection waits for another one",
        "workers/aios_workers/modules/memory/changing.py",
        "    token = await asked.services.blocks.of(asked.agent).token()\n\n"
        "    async def write(work: AnyWork) -> Note:\n",
        "    async def write(work: AnyWork) -> Note:\n"
        "        token = await asked.services.blocks.of(asked.agent).token()\n",
        COST_TEST,
    ),
    Mutant(
        "a change opens a block",
        "workers/aios_workers/modules/memory/block.lua",
        "if not b.known then return {'ok', ''} end",
        "if not b.known then return {'unknown'} end",
        COST_TEST,
    ),
    Mutant(
        "a read opens a block while it holds a row",
        "workers/aios_workers/modules/memory/block.py",
        "block = self._block(owner, opens=False)\n        self._counts",
        "block = self._block(owner, opens=True)\n        self._counts",
        COST_TEST,
    ),
    Mutant(
        "nobody waits for a turn",
        "broker/aios_broker/postgres/store.py",
        "FROM unnest(%s::text[]) AS name)",
        "FROM unnest(%s::text[]) AS name WHERE false)",
        STORAGE_TEST,
    ),
    Mutant(
        "a syscall does not wait for itself",
        "workers/aios_workers/modules/operation.py",
        'asked.transaction(f"{asked.agent.id} {asked.syscall.id}", *locks)',
        "asked.transaction(*locks)",
        COST_TEST,
    ),
    Mutant(
        "scratch space is everywhere",
        "workers/aios_workers/approvals/service.py",
        'if why.scratch and not (rule.of_agent and rule.rule == "ask"):',
        "if True:",
        APPROVALS_TEST,
    ),
    Mutant(
        "one approves what it asked for",
        "workers/aios_workers/approvals/deciders.py",
        "if decider.agent_id == row.agent_id:",
        "if False:",
        APPROVALS_TEST,
    ),
    Mutant(
        "it is decided twice",
        "workers/aios_workers/approvals/requests.py",
        'if row.stored in ("approved", "denied", "used"):',
        "if False:",
        APPROVALS_TEST,
    ),
    Mutant(
        "decided jobs stay parked",
        "workers/aios_workers/approvals/service.py",
        "words = await self._control.unpark([job for _, job in part], module=module)",
        'words = ["done" for _ in part]',
        PARKING_TEST,
    ),
    Mutant(
        "the request of an ended job stays open",
        "workers/aios_workers/approvals/service.py",
        "if not lives]",
        "if False]",
        PARKING_TEST,
    ),
    Mutant(
        "everybody registers",
        "workers/aios_workers/modules/access/identity.py",
        '        if not await is_administrator(work):\n            raise denied("registering',
        '        if False:\n            raise denied("registering',
        ACCESS_TEST,
    ),
    Mutant(
        "any member changes a group",
        "workers/aios_workers/modules/access/groups.py",
        'if row.role != "admin" and not await is_administrator(work):',
        "if False:",
        ACCESS_TEST,
    ),
    Mutant(
        "who may share grants anything",
        "workers/aios_workers/modules/access/grants.py",
        '_require(verbs, {"share", *body.verbs}, owner)',
        '_require(verbs, {"share"}, owner)',
        ACCESS_TEST,
    ),
    Mutant(
        "a change leaves the old note in its block",
        "workers/aios_workers/modules/memory/changing.py",
        "blocks.of(owner).invalidate([note.id])\n    written",
        "blocks.of(owner).token()\n    written",
        CRASH_TEST,
    ),
    Mutant(
        "effects are not found again",
        "workers/aios_workers/modules/operation.py",
        "        if earlier:\n",
        "        if False:\n",
        MEMORY_TEST,
    ),
    Mutant(
        "an evolution that was built upon is undone",
        "workers/aios_workers/modules/memory/evolution.py",
        "if note.version != before[each]]",
        "if False]",
        MEMORY_TEST,
    ),
    Mutant(
        "a note's reader may write",
        "workers/aios_workers/modules/memory/changing.py",
        "if verb not in verbs:",
        "if False:",
        MEMORY_TEST,
    ),
    Mutant(
        "a recalled text is too long",
        "workers/aios_workers/modules/memory/reading.py",
        "if tokens <= max_tokens:\n            return",
        "if True:\n            return",
        "tests/unit/test_recall.py",
    ),
    Mutant(
        "references close together count twice",
        "workers/aios_workers/modules/memory/block.lua",
        "if not last or now - last > b.correlated then",
        "if true then",
        BLOCK_TEST,
    ),
    Mutant(
        "a swap ends at the high watermark",
        "workers/aios_workers/modules/memory/block.lua",
        "b.used - b.low * b.limit",
        "b.used - b.high * b.limit",
        BLOCK_TEST,
    ),
    Mutant(
        "a lock keeps nobody out",
        "workers/aios_workers/modules/storage/namespace.py",
        "if file.is_locked and file.locked_by != work.agent.id:",
        "if False:",
        STORAGE_TEST,
    ),
    Mutant(
        "versions are kept for ever",
        "workers/aios_workers/modules/storage/contents.py",
        "AND version <= (SELECT version FROM f) - %(keep)s",
        "AND false",
        MODEL_TEST,
    ),
    Mutant(
        "content that nobody has is charged on",
        "workers/aios_workers/modules/storage/contents.py",
        "- (SELECT coalesce(sum(size_bytes), 0) FROM went)",
        "- 0",
        MODEL_TEST,
    ),
    Mutant(
        "a directory is moved into itself",
        "workers/aios_workers/modules/storage/moves.py",
        "if is_within(target.path, directory.path):",
        "if False:",
        MODEL_TEST,
    ),
    Mutant(
        "grants on a directory end at its door",
        "workers/aios_workers/modules/storage/namespace.py",
        'objects = [("directory", str(each)) for each in ancestors]',
        'objects = [("directory", str(each)) for each in ancestors[-1:]]',
        MODEL_TEST,
    ),
    Mutant(
        "a link is followed",
        "workers/aios_workers/modules/storage/host.py",
        "_READ = os.O_RDONLY | os.O_NOFOLLOW |",
        "_READ = os.O_RDONLY |",
        MOUNT_TEST,
    ),
    Mutant(
        "a linked directory is entered",
        "workers/aios_workers/modules/storage/host.py",
        "_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW |",
        "_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY |",
        MOUNT_TEST,
    ),
    Mutant(
        "a plan is made anew after its approval",
        "workers/aios_workers/modules/storage/operating.py",
        "        if kept is not None:\n",
        "        if False:\n",
        OPERATE_TEST,
    ),
    Mutant(
        "a plan asks nobody",
        "workers/aios_workers/modules/storage/operating.py",
        "    if not lossy:\n",
        "    if True:\n",
        OPERATE_TEST,
    ),
    Mutant(
        "look-alikes of slashes are names",
        "broker/aios_broker/contract/paths.py",
        "if what is None and _reads_as_separator(character):",
        "if False:",
        PATH_TEST,
    ),
    Mutant(
        "dots lead up",
        "broker/aios_broker/contract/paths.py",
        'if part == "." or part.startswith(".."):',
        "if False:",
        PATH_TEST,
    ),
    Mutant(
        "search finds more than k",
        "workers/aios_workers/search/ranking.py",
        "return fuse(lists)[: wanted.k]",
        "return fuse(lists)",
        SEARCH_TEST,
    ),
    Mutant(
        "a new text keeps the old vector",
        "workers/aios_workers/modules/memory/changing.py",
        "words = to_tsvector('english', %s), model_id = NULL, vector = NULL\n    WHERE n.id",
        "words = to_tsvector('english', %s)\n    WHERE n.id",
        SEARCH_TEST,
    ),
    Mutant(
        "what has gone from the host is still found",
        "workers/aios_workers/modules/storage/mounts.py",
        "if is_whole and path not in wanted]",
        "if False]",
        "tests/integration/test_mount_search.py",
    ),
    Mutant(
        "a file of the host is read once for ever",
        "workers/aios_workers/modules/storage/mounts.py",
        "return known is None or (known.size_bytes, known.changed_at) != seen",
        "return known is None",
        "tests/integration/test_mount_search.py",
    ),
    Mutant(
        "the map keeps who has left",
        "workers/aios_workers/modules/access/groups.py",
        "gone = [agent for agent in shown if agent not in truth]",
        "gone = []",
        GRANTS_TEST,
    ),
    Mutant(
        "a right ends in the middle of its use",
        POLICIES,
        "OR granted_by = (SELECT aios_agent_id())\n        OR CASE object_kind",
        "OR granted_by = (SELECT aios_agent_id())\n"
        "        OR aios_holds(object_kind, object_id, 'administer') OR CASE 'none'",
        ACCESS_TEST,
    ),
    Mutant(
        "a grant goes before what stands in for it",
        "workers/aios_workers/modules/access/grants.py",
        "    [row] = await work.rows(_PUT,",
        '    await work.cursor.execute(_DROP, to | {"all": False, "but": 0})\n'
        "    [row] = await work.rows(_PUT,",
        "tests/integration/test_access.py",
    ),
    Mutant(
        "an expired grant lets in",
        FUNCTIONS,
        "(g.expires_at IS NULL OR g.expires_at > now()) AND ",
        "",
        MATRIX_TEST,
    ),
    Mutant(
        "a grant is of every verb",
        FUNCTIONS,
        " AND g.verbs && aios_verbs(verb)",
        "",
        MATRIX_TEST,
    ),
    Mutant(
        "everybody is a member",
        FUNCTIONS,
        "m.agent_id = aios_agent_id() AND p",
        "p",
        MATRIX_TEST,
    ),
    Mutant(
        "whose note it is does not count",
        POLICIES,
        "CREATE POLICY agent_select ON note FOR SELECT TO aios_agent\n    USING (",
        "CREATE POLICY agent_select ON note FOR SELECT TO aios_agent\n    USING (true OR",
        MATRIX_TEST,
    ),
    Mutant(
        "whose file it is does not count",
        POLICIES,
        "CREATE POLICY agent_select ON file FOR SELECT TO aios_agent\n    USING (",
        "CREATE POLICY agent_select ON file FOR SELECT TO aios_agent\n    USING (true OR",
        MATRIX_TEST,
    ),
    Mutant(
        "rows are not guarded",
        POLICIES,
        "ENABLE ROW LEVEL SECURITY",
        "DISABLE ROW LEVEL SECURITY",
        MATRIX_TEST,
    ),
    Mutant(
        "who may share passes on more than it has",
        FUNCTIONS,
        "        AND NOT EXISTS (SELECT FROM unnest(verbs) v\n"
        "                        WHERE NOT aios_holds(kind, object_id, v)))",
        "        )",
        SHARE_TEST,
    ),
)
