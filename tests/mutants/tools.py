"""The mutants of tools: what is checked, what runs again, what is left over."""

from tests.mutants.catalogue import Mutant

ARGUMENTS_TEST = "tests/unit/test_tool_arguments.py"
TOOLS_TEST = "tests/integration/test_tools.py"
PROCESSES_TEST = "tests/integration/test_tool_processes.py"
EGRESS_TEST = "tests/integration/test_egress.py"
RULES_TEST = "tests/unit/test_egress_rules.py"
APPROVALS_TEST = "tests/integration/test_tool_approvals.py"
STARTS_TEST = "tests/faults/test_start_deaths.py"
FOLDER = "workers/aios_workers/modules/tool/"

TOOL_MUTANTS = (
    Mutant(
        "tool module: wrong arguments run nothing",
        FOLDER + "arguments.py",
        "        if faults:\n",
        "        if False:\n",
        TOOLS_TEST + "::test_wrong_arguments_are_told_all_at_once_and_nothing_runs",
    ),
    Mutant(
        "tool module: a text stays one where a text will do",
        FOLDER + "arguments.py",
        'and types and "string" not in types',
        "and types",
        ARGUMENTS_TEST + "::test_what_says_exactly_that_is_taken_for_it",
    ),
    Mutant(
        "tool module: a number is taken only where it is written as JSON writes it",
        FOLDER + "arguments.py",
        '_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\\Z")',
        '_INTEGER = re.compile(r"-?[0-9]{1,17}\\Z")',
        ARGUMENTS_TEST + "::test_nothing_else_is_changed",
    ),
    Mutant(
        "tool module: a schema fetches nothing",
        FOLDER + "arguments.py",
        "            offline=True,\n",
        "",
        ARGUMENTS_TEST + "::test_a_schema_reads_no_file_of_the_machine",
    ),
    Mutant(
        "tool module: arguments are bounded at the first border",
        "broker/aios_broker/contract/tools.py",
        "        check_arguments(self.arguments)\n",
        "",
        ARGUMENTS_TEST + "::test_what_no_tool_could_take_is_refused_at_the_first_border",
    ),
    Mutant(
        "tool module: only an idempotent tool runs again",
        FOLDER + "handler.py",
        "        if run.lease.losses and not program.card.idempotent:\n",
        "        if False:\n",
        TOOLS_TEST + "::test_only_an_idempotent_tool_runs_again_when_its_worker_has_died",
    ),
    Mutant(
        "tool module: a destructive tool waits for a person",
        FOLDER + "handler.py",
        "        if program.card.destructive:\n",
        "        if False:\n",
        APPROVALS_TEST + "::test_it_does_not_run_when_a_person_refuses_it",
    ),
    Mutant(
        "tool module: an approval is for one version",
        FOLDER + "approvals.py",
        'Seen("tool", card.name, digest=card.version, name=called)',
        'Seen("tool", card.name, name=called)',
        APPROVALS_TEST + "::test_a_tool_that_has_changed_since_is_asked_for_anew",
    ),
    Mutant(
        "tool module: an approval is used when nothing else is waited for",
        FOLDER + "handler.py",
        "            if not await self._has_its_needs(run, program.card, arguments):\n",
        "            if False:\n",
        APPROVALS_TEST + "::test_an_approval_is_not_used_up_while_a_lock_is_not_free",
    ),
    Mutant(
        "tool module: who cancels a call ends it",
        FOLDER + "tool_process.py",
        '                await self._send({"kill": call_id})\n',
        "                heard.ended.cancel()\n",
        TOOLS_TEST + "::test_a_cancelled_call_ends_with_all_that_it_began",
    ),
    Mutant(
        "tool module: who cancels a call goes on when it has ended",
        FOLDER + "tool_process.py",
        "                return await asyncio.shield(heard.ended)\n",
        "                return await heard.ended\n",
        PROCESSES_TEST + "::test_a_cancelled_call_has_ended_when_its_caller_goes_on",
    ),
    Mutant(
        "tool module: what was started is what was described",
        FOLDER + "tool_process.py",
        "            if content != program.content:\n",
        "            if False:\n",
        PROCESSES_TEST + "::test_what_is_on_disk_when_it_is_started_is_what_was_described",
    ),
    Mutant(
        "tool module: one at a time starts a process",
        FOLDER + "processes.py",
        "            async with gate.lock:\n",
        "            if True:\n",
        PROCESSES_TEST + "::test_many_calls_at_once_start_one_process",
    ),
    Mutant(
        "tool module: what a call leaves running is ended",
        FOLDER + "process/__main__.py",
        "        end_orphans({each.pid for each in self._calls.values()} - {call.pid})\n",
        "",
        TOOLS_TEST + "::test_what_a_tool_leaves_running_is_ended",
    ),
    Mutant(
        "tool module: a session has so many files",
        "workers/aios_workers/modules/tool/sessions/host.py",
        "    if files > MOST_SEEN:\n",
        "    if files > MOST_SEEN * 100:\n",
        "tests/integration/test_exec_sessions.py::test_a_bomb_ends_its_session_alone",
    ),
    Mutant(
        "tool module: a tool's process joins its group",
        "workers/aios_workers/modules/tool/sandbox/task_groups.py",
        '_JOIN = \'echo $$ > "$0" && exec "$@"\'\n',
        "_JOIN = 'exec \"$@\"'\n",
        "tests/integration/test_task_groups.py::test_a_group_bounds_all_below_it",
    ),
    Mutant(
        "tool module: a sandbox bounds its tasks",
        FOLDER + "process/tasks.py",
        "        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))\n",
        "",
        "tests/integration/test_task_groups.py::test_an_ordinary_users_sandbox_bounds_itself",
    ),
    Mutant(
        "tool module: a call runs in a process of its own",
        FOLDER + "process/__main__.py",
        "        pid = os.fork()\n",
        "        pid = 0\n",
        TOOLS_TEST + "::test_nothing_is_left_in_memory_for_the_next_call",
    ),
    Mutant(
        "tool module: what a call prints is cut",
        FOLDER + "process/calls.py",
        "        kept = data[: self._left]\n",
        "        kept = data\n",
        TOOLS_TEST + "::test_what_a_tool_prints_is_cut_and_made_text",
    ),
    Mutant(
        "tool module: a call may use so much memory",
        FOLDER + "process/calls.py",
        "        (resource.RLIMIT_AS, memory, memory),\n",
        "",
        TOOLS_TEST + "::test_what_a_tool_does_wrong_is_told_and_the_next_call_runs",
    ),
    Mutant(
        "tool module: a changed file is another version",
        FOLDER + "registry.py",
        "        return any(file_stamp(path) != stamp for path, stamp in known.stamps.items())\n",
        "        return False\n",
        TOOLS_TEST + "::test_a_changed_tool_is_another_version_without_a_restart",
    ),
    Mutant(
        "tool module: what would be wrong is not written",
        "broker/aios_local/tools_file.py",
        "                    raise after.problems[where]\n",
        "                    continue\n",
        "tests/unit/test_tools_file.py::test_what_would_be_wrong_is_not_written",
    ),
    Mutant(
        "egress: a path is compared only where it is one path",
        FOLDER + "egress/rules.py",
        "    return _is_plain(path) and (",
        "    return True and (",
        RULES_TEST + "::test_what_a_rule_does_not_name_is_refused",
    ),
    Mutant(
        "egress: a path ends at a slash",
        FOLDER + "egress/rules.py",
        'path.startswith(prefix.rstrip("/") + "/"))',
        "path.startswith(prefix))",
        RULES_TEST + "::test_what_a_rule_does_not_name_is_refused",
    ),
    Mutant(
        "egress: addresses within addresses are looked at",
        "workers/aios_workers/addresses.py",
        "    return address.is_global and all(map(is_public, inner))\n",
        "    return address.is_global\n",
        RULES_TEST + "::test_no_address_that_is_not_the_internets_is_public",
    ),
    Mutant(
        "egress: each address of a name is public",
        FOLDER + "egress/addresses.py",
        "not all(map(self._may_reach, found))",
        "not any(map(self._may_reach, found))",
        EGRESS_TEST + "::test_a_name_that_leads_into_a_private_network_is_refused",
    ),
    Mutant(
        "egress: the host is the one that the rule passed for",
        FOLDER + "egress/message.py",
        '        "host",\n',
        "",
        EGRESS_TEST + "::test_the_host_in_a_tunnel_is_the_one_that_was_asked_for",
    ),
    Mutant(
        "egress: a key goes where the operator says",
        FOLDER + "egress/secrets.py",
        "        if not any(pattern_of(host).names(origin) for host in secret.hosts):\n",
        "        if False:\n",
        EGRESS_TEST + "::test_a_key_goes_nowhere_but_where_rule_and_operator_agree",
    ),
    Mutant(
        "egress: a key goes where the rule says",
        FOLDER + "egress/secrets.py",
        "        if name not in allowed:\n",
        "        if False:\n",
        EGRESS_TEST + "::test_a_key_goes_nowhere_but_where_rule_and_operator_agree",
    ),
    Mutant(
        "egress: what may be the beginning of a key waits",
        FOLDER + "egress/secrets.py",
        "        keep = max((_begun(data, text) for text in self._texts), default=0)\n",
        "        keep = 0\n",
        RULES_TEST + "::test_a_key_is_taken_out_wherever_a_stream_is_cut",
    ),
    Mutant(
        "egress: no compressed answer where a key went in",
        FOLDER + "egress/proxy.py",
        "    if _ENCODED.search(head):\n",
        "    if False:\n",
        EGRESS_TEST + "::test_a_compressed_answer_is_no_way_for_a_key_to_come_back",
    ),
    Mutant(
        "egress: a length that can be read in two ways",
        FOLDER + "egress/message.py",
        '            if lengths or [each.lower() for each in codings] != ["chunked"]:\n',
        "            if False:\n",
        EGRESS_TEST + "::test_a_request_that_can_be_read_in_two_ways_is_refused",
    ),
    Mutant(
        "egress: no key without a sandbox",
        FOLDER + "processes.py",
        '        if self._sandbox.kind == "none" and card.secrets:\n',
        "        if False:\n",
        "tests/integration/test_egress_tools.py"
        "::test_without_a_sandbox_no_tool_that_uses_a_key_runs",
    ),
    Mutant(
        "tool module: nothing of a tool is loaded before its worker says so",
        FOLDER + "process/__main__.py",
        "    if not line.is_told():\n",
        "    if False:\n",
        STARTS_TEST + "::test_nothing_is_loaded_where_nobody_says_so",
    ),
    Mutant(
        "tool module: a sandbox that a killed worker has left goes when the next one starts",
        FOLDER + "opening.py",
        "        end_left(folder)\n",
        "",
        STARTS_TEST
        + "::test_what_a_killed_worker_has_left_all_the_same_goes_when_the_next_one_starts",
    ),
    Mutant(
        "tool module: a worker may work in a folder that another has removed",
        FOLDER + "opening.py",
        "if os.fstat(lock).st_nlink:",
        "if True:",
        STARTS_TEST + "::test_a_folder_that_another_worker_took_for_left_is_made_anew",
    ),
)
