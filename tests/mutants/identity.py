"""The mutants of who administers, who decides, and whose name it is."""

from tests.mutants.catalogue import Mutant

DECIDERS_TEST = "tests/integration/test_deciders.py"
ACCESS_TEST = "tests/integration/test_access.py"
MOUNT_TEST = "tests/integration/test_storage_mounts.py"
EDITS_TEST = "tests/unit/test_edits.py"
DECIDERS = "broker/aios_broker/access/deciders.py"
EDITS = "broker/aios_broker/access/edits.py"
IDENTITY = "workers/aios_workers/modules/access/identity.py"
FUNCTIONS = "migrations/schema/functions.sql"
SCREEN = "sdk/aios_cli/approvals.py"
SCREEN_TEST = "tests/unit/test_approval_screen.py"
POLICIES = "migrations/schema/policies.sql"

IDENTITY_MUTANTS = (
    Mutant(
        "whoever administers decides",
        FUNCTIONS,
        "WHERE d.id = decider AND a.id = asker AND d.decides)",
        "WHERE d.id = decider AND a.id = asker)",
        DECIDERS_TEST,
    ),
    Mutant(
        "one decides for its puppets",
        FUNCTIONS,
        "       AND asker <> ALL (circle)\n",
        "",
        DECIDERS_TEST,
    ),
    Mutant(
        "a circle has no puppets",
        FUNCTIONS,
        "SELECT id FROM behind UNION SELECT h.spoken_for FROM circle c JOIN hand h "
        "ON h.speaker = c.id\n",
        "SELECT id FROM behind\n",
        DECIDERS_TEST,
    ),
    Mutant(
        "who issued a token does not speak as its agent",
        FUNCTIONS,
        "UNION SELECT issued_by, agent_id FROM agent_token WHERE issued_by IS NOT NULL",
        "",
        DECIDERS_TEST,
    ),
    Mutant(
        "grants to groups make no puppet",
        FUNCTIONS,
        "              AND (g.agent_id = asker\n"
        "                   OR g.group_id IN (SELECT m.group_id FROM membership m\n"
        "                                     WHERE m.agent_id = asker)))",
        "              AND g.agent_id = asker)",
        DECIDERS_TEST,
    ),
    Mutant(
        "who may decide is not asked again",
        "workers/aios_workers/approvals/service.py",
        '_STANDS = "(decided_by_agent IS NULL OR aios_may_decide(decided_by_agent, agent_id))"',
        '_STANDS = "true"',
        DECIDERS_TEST,
    ),
    Mutant(
        "by SQL anybody decides for anybody",
        POLICIES,
        "AND aios_may_decide((SELECT aios_agent_id()), agent_id)",
        "",
        DECIDERS_TEST,
    ),
    Mutant(
        "one decides about what is its own",
        DECIDERS,
        "    if own:\n",
        "    if False:\n",
        DECIDERS_TEST,
    ),
    Mutant(
        "agents decide about rules",
        DECIDERS,
        "    if row.kind in OPERATOR_ALONE:\n",
        "    if False:\n",
        DECIDERS_TEST,
    ),
    Mutant(
        "an operator decides about what has ended",
        "broker/aios_broker/views/settings.py",
        "        await check_alive(control, decided)\n",
        "",
        DECIDERS_TEST,
    ),
    Mutant(
        "an agent decides about what has ended",
        "workers/aios_workers/modules/access/operations.py",
        "    await requests.check_alive(Control(services.functions, services.keys), approval)\n",
        "",
        DECIDERS_TEST,
    ),
    Mutant(
        "agents edit as they like",
        "broker/aios_broker/access/requests.py",
        "        check_narrower(asked, body)\n",
        "",
        DECIDERS_TEST,
    ),
    Mutant(
        "an edit needs no right of its own",
        EDITS,
        "    if not (await only_row(cursor)).may:\n",
        "    if False:\n",
        DECIDERS_TEST,
    ),
    Mutant(
        "the right to edit is not asked again",
        "workers/aios_workers/approvals/service.py",
        'if row.decided_by_agent is not None and row.state == "approved":',
        "if False:",
        DECIDERS_TEST,
    ),
    Mutant(
        "one file becomes a tree",
        EDITS,
        "    if not asked.recursive:\n        return False\n",
        "",
        EDITS_TEST,
    ),
    Mutant(
        "an edit changes whose it is",
        EDITS,
        "asked.owner == edited.owner and ",
        "",
        EDITS_TEST,
    ),
    Mutant(
        "a token of a known agent is given at once",
        IDENTITY,
        "(body.administrator or not made)",
        "body.administrator",
        ACCESS_TEST,
    ),
    Mutant(
        "whoever is named may mount another's directory",
        "workers/aios_workers/modules/storage/host.py",
        "[root for root, whose in self._roots if whose & who]",
        "[root for root, whose in self._roots]",
        MOUNT_TEST,
    ),
    Mutant(
        "a directory to write in is mounted unasked",
        "workers/aios_workers/modules/storage/mounts.py",
        "    if body.writable:\n",
        "    if False:\n",
        MOUNT_TEST,
    ),
    Mutant(
        "an agent may be called like the operator",
        "broker/aios_broker/contract/names.py",
        '_NOT_OURS = r"^(?!(?i:operator|kernel))"',
        '_NOT_OURS = r"^"',
        "tests/unit/test_syscall.py",
    ),
    Mutant(
        "an operator's token becomes an agent's",
        IDENTITY,
        "    await _refuse_others_token(asked)\n",
        "",
        ACCESS_TEST,
    ),
    Mutant(
        "an agent's name goes on as a line of the approval screen",
        SCREEN,
        "*(QUOTE + part for part in others)",
        "*others",
        SCREEN_TEST,
    ),
    Mutant(
        "arguments run on as lines of the approval screen",
        SCREEN,
        "say(_quoted(msgspec.json.encode(waiting.arguments).decode()))",
        "say(msgspec.json.encode(waiting.arguments).decode())",
        SCREEN_TEST,
    ),
    Mutant(
        "a difference looks like a line of the approval screen",
        SCREEN,
        "say(_quoted(waiting.diff))",
        "say(waiting.diff)",
        SCREEN_TEST,
    ),
)
