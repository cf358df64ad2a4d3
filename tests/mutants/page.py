"""The mutants of the page's decisions, and of the operations that it stands on."""

from tests.mutants.catalogue import Mutant

DECISIONS_TEST = "tests/integration/test_page_decisions.py"
RIGHTS_TEST = "tests/integration/test_api_rights.py"
BROWSER_TEST = "tests/integration/test_page_browser.py"
BULK_TEST = "tests/integration/test_page_bulk.py"
TOOLS_TEST = "tests/integration/test_page_tools.py"
VIEWS_OF_TOOLS = "broker/aios_broker/views/tools.py"
EVERY_VIEW_TEST = "tests/integration/test_page_every_view.py"
TEXT_TEST = "tests/unit/test_page_decisions.py"
NARROW_TEST = "test_on_a_narrow_screen_nothing_scrolls_sideways_and_cells_say_what_they_are"
APPROVALS = "kernel_api/aios_kernel_api/page/decisions/approvals.py"

READERS_TEST = "tests/integration/test_page_readers.py"
LIVE = "kernel_api/aios_kernel_api/page/static/live.js"

PAGE_MUTANTS = (
    Mutant(
        "a trace does not say which tool was called",
        "broker/aios_broker/traces/spans.py",
        'found["gen_ai.tool.name"] = of.tool or of.kind',
        'found["gen_ai.tool.name"] = of.kind',
        "tests/unit/test_traces.py::test_other_kinds_have_their_own_names",
    ),
    Mutant(
        "anybody's program is taken away as a trace",
        "kernel_api/aios_kernel_api/page/runs/trace_file.py",
        "whose_program(caller, query.tenant, query.agent)",
        "query.tenant or caller.tenant, query.agent or caller.agent",
        "tests/integration/test_page_runs.py::test_a_program_is_taken_away_as_a_trace",
    ),
    Mutant(
        "what is not in view is followed",
        LIVE,
        "    else inView.delete(entry.target);\n",
        "",
        f"{BROWSER_TEST}::test_only_what_is_in_view_is_asked_for",
    ),
    Mutant(
        "each tab has a stream",
        LIVE,
        'await permitted("stream", STREAMS)',
        "() => {}",
        f"{READERS_TEST}::test_a_tab_without_a_stream_of_its_own_asks_instead",
    ),
    Mutant(
        "a stream that is held back is waited for",
        LIVE,
        "    isHeldUp = true;\n",
        "",
        f"{READERS_TEST}::test_what_is_held_back_on_the_way_is_asked_for_instead",
    ),
    Mutant(
        "each tab takes a connection for the slots",
        "kernel_api/aios_kernel_api/page/static/slots.js",
        'await permitted("slots", STREAMS)',
        "() => {}",
        f"{READERS_TEST}::test_two_tabs_follow_the_slots_and_a_third_says_why_it_does_not",
    ),
    Mutant(
        "tables scroll sideways on a narrow screen",
        "kernel_api/aios_kernel_api/page/static/page.css",
        "@media (max-width: 60rem) {",
        "@media (max-width: 6rem) {",
        f"{EVERY_VIEW_TEST}::{NARROW_TEST}",
    ),
    Mutant(
        "a number on a narrow screen has the word of another column",
        "kernel_api/aios_kernel_api/page/templates/runs/timeline.html",
        'data-label="Waited"',
        'data-label="Ran"',
        f"{EVERY_VIEW_TEST}::{NARROW_TEST}",
    ),
    Mutant(
        "anybody's last error of a tool is told",
        VIEWS_OF_TOOLS,
        "failure is not None and whose.has(failure.tenant, failure.agent)",
        "failure is not None",
        f"{TOOLS_TEST}::test_the_last_error_of_a_tool_is_told_to_whose_call_it_was",
    ),
    Mutant(
        "everybody's sessions are listed",
        VIEWS_OF_TOOLS,
        "            if whose.has(tenant, each.agent)\n",
        "",
        f"{TOOLS_TEST}::test_a_session_is_seen_by_scope_and_closed_by_its_own",
    ),
    Mutant(
        "a session of a dead worker stands as alive",
        VIEWS_OF_TOOLS,
        'session.state == "lost" or record.host in alive',
        "True",
        f"{TOOLS_TEST}::test_a_session_whose_worker_has_died_is_lost",
    ),
    Mutant(
        "an operator forgets a tenant with its first closed session",
        "broker/aios_broker/queues/exec_sessions.py",
        'if await self._connection.execute("EXISTS", self._of(tenant)):',
        "if False:",
        f"{TOOLS_TEST}::test_a_session_is_seen_by_scope_and_closed_by_its_own",
    ),
    Mutant(
        "a session is closed without being asked about",
        "kernel_api/aios_kernel_api/page/tools.py",
        '    if form.one("confirm") != "yes":\n',
        "    if False:\n",
        f"{TOOLS_TEST}::test_a_session_is_seen_by_scope_and_closed_by_its_own",
    ),
    Mutant(
        "an agent is told how many calls of a tool others run",
        VIEWS_OF_TOOLS,
        "    if whose.tenant is not None:\n        limit",
        "    if False:\n        limit",
        f"{TOOLS_TEST}::test_a_tool_shows_what_runs_of_it_to_whom_it_concerns",
    ),
    Mutant(
        "a form is sent with a login that is over",
        "kernel_api/aios_kernel_api/page/static/login.js",
        "    if (await isLoggedIn()) {\n",
        "    if (true) {\n",
        f"{BROWSER_TEST}::test_a_form_is_not_sent_with_a_login_that_is_over",
    ),
    Mutant(
        "somebody else's login goes on with what was typed",
        "kernel_api/aios_kernel_api/page/static/login.js",
        "  if (whose(page) !== whose(document)) {\n",
        "  if (false) {\n",
        f"{BROWSER_TEST}::test_somebody_elses_login_is_another_page",
    ),
    Mutant(
        "an agent without its tenant is one of the default tenant",
        "kernel_api/aios_kernel_api/page/owners.py",
        'caller.scope == "operator" and agent is not None and tenant is None',
        "False",
        "tests/integration/test_page.py::test_an_operator_finds_an_agent_without_its_tenant",
    ),
    Mutant(
        "a retry does not say what it has not looked through",
        "kernel_api/aios_kernel_api/page/bulk.py",
        "Found(found, failed.looked_back_to)",
        "Found(found)",
        f"{BULK_TEST}::test_what_was_not_looked_through_is_said",
    ),
    Mutant(
        "the page asks no scope",
        "kernel_api/aios_kernel_api/page/rest.py",
        "    require(caller, operation.scope)\n",
        "",
        f"{DECISIONS_TEST}::test_what_is_the_operators_is_not_offered_to_others",
    ),
    Mutant(
        "arguments hide characters",
        APPROVALS,
        "one if printable(one) == one else _escaped(one)",
        "one",
        f"{TEXT_TEST}::test_arguments_read_back_as_they_are",
    ),
    Mutant(
        "an edit decides before it is shown",
        APPROVALS,
        '    if "arguments" in form.fields:\n',
        "    if False:\n",
        f"{DECISIONS_TEST}::test_an_edit_is_shown_before_it_runs",
    ),
    Mutant(
        "a form leads to another site",
        "kernel_api/aios_kernel_api/page/decisions/agents.py",
        'place if place.startswith("/agents") else "/agents"',
        "place",
        f"{DECISIONS_TEST}::test_an_agent_is_suspended_allowed_and_goes_on",
    ),
    Mutant(
        "an approval is bound to what things are called",
        "workers/aios_workers/approvals/irreversible.py",
        "if name not in _NOT_BOUND",
        "if True",
        "tests/integration/test_approvals.py"
        "::test_what_an_older_release_has_asked_for_is_still_allowed",
    ),
    Mutant(
        "what comes instead is told as what goes",
        "broker/aios_broker/contract/access.py",
        'if self.kind in ("plan", "changes") or self._comes:',
        'if self.kind in ("plan", "changes"):',
        TEXT_TEST,
    ),
    Mutant(
        "tokens that are over stand among the good ones",
        "broker/aios_broker/access/tokens.py",
        "({_GOOD}) = %(good)s",
        "({_GOOD} OR %(good)s)",
        f"{DECISIONS_TEST}::test_tokens_that_are_over_are_folded_and_counted",
    ),
    Mutant(
        "everybody's tokens are listed",
        "kernel_api/aios_kernel_api/rest/rights.py",
        "            whose.tenant,\n            whose.agent,\n            limit=query.limit + 1,",
        "            None,\n            limit=query.limit + 1,",
        f"{RIGHTS_TEST}::test_tokens_are_seen_by_scope_and_never_whole",
    ),
    Mutant(
        "what has failed runs again however much its agent has waiting",
        "broker/aios_broker/queues/lua/operator/retry.lua",
        "    if refusal then return refusal[1] end\n",
        "",
        f"{BULK_TEST}::test_why_others_are_not_run_again_is_said",
    ),
    Mutant(
        "a failed syscall goes back into its module's own queue",
        "broker/aios_broker/queues/lua/operator/retry.lua",
        "    call('RPUSH', at.queue, id)\n",
        "    call('RPUSH', c.queue, id)\n",
        f"{BULK_TEST}::test_what_has_failed_runs_again_once_it_was_confirmed",
    ),
    Mutant(
        "anybody's programs run again",
        "kernel_api/aios_kernel_api/page/bulk.py",
        "        whose_of(caller, tenant, agent)\n",
        "",
        f"{BULK_TEST}::test_an_agent_runs_its_own_again_and_nobody_elses",
    ),
    Mutant(
        "another tenant's groups are listed",
        "kernel_api/aios_kernel_api/rest/views.py",
        "    return whose_of(caller, tenant, None).tenant\n",
        "    return tenant\n",
        f"{RIGHTS_TEST}::test_groups_and_grants_are_seen_by_whom_they_concern",
    ),
)
