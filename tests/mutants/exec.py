"""The mutants of exec sessions: blocks that close them, what is told of their end, who enters."""

from tests.mutants.catalogue import Mutant

AGENTS_TEST = "tests/integration/test_exec_agents.py"
SESSIONS_TEST = "tests/integration/test_exec_sessions.py"
ESCAPES_TEST = "tests/integration/test_exec_escapes.py"
SDK = "sdk/aios_sdk/verbs.py"
TOOLS = "workers/aios_workers/modules/tool/"
SESSIONS = "workers/aios_workers/modules/tool/sessions/"

EXEC_MUTANTS = (
    Mutant(
        "exec: an asynchronous block closes its session",
        SDK,
        "                await self.close()\n",
        "                pass\n",
        AGENTS_TEST + "::test_a_block_that_is_left_by_an_error_closes_it_while_something_runs",
    ),
    Mutant(
        "exec: a block closes its session",
        SDK,
        "                self.close()\n",
        "                pass\n",
        AGENTS_TEST + "::test_an_agent_that_waits_has_the_same_block",
    ),
    Mutant(
        "exec: a session that has ended is left all the same",
        SDK,
        "suppress(SessionLost, UnknownSession)",
        "suppress(SessionLost)",
        AGENTS_TEST + "::test_a_session_is_also_awaited_and_stays_until_it_is_closed",
    ),
    Mutant(
        "exec: a loss is told once",
        SESSIONS + "session_answers.py",
        "        if record.is_spare(now):\n",
        "        if False:\n",
        SESSIONS_TEST + "::test_a_loss_is_told_once",
    ),
    Mutant(
        "exec: a session that is being opened lives",
        SESSIONS + "host.py",
        "in self._sessions or session_id in self._opening\n",
        "in self._sessions\n",
        SESSIONS_TEST + "::test_what_is_sent_to_a_session_that_opens_waits_for_it",
    ),
    Mutant(
        "exec: what is sent to a session that opens waits",
        SESSIONS + "session_answers.py",
        "        await self._host.opened(body.session)\n",
        "",
        SESSIONS_TEST + "::test_what_is_sent_to_a_session_that_opens_waits_for_it",
    ),
    Mutant(
        "tool module: no call ends what another one has detached",
        TOOLS + "process/__main__.py",
        "                self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)\n",
        "",
        "tests/integration/test_tools.py"
        "::test_the_end_of_a_call_ends_nothing_that_another_one_has_detached",
    ),
    Mutant(
        "tool module: limits without a card go",
        "broker/aios_broker/queues/tool_cards.py",
        "        if left := [name for name in limited if name.decode() not in known]:\n",
        "        if left := []:\n",
        "tests/integration/test_tool_limits.py::test_limits_without_a_card_go_with_the_next_look",
    ),
    Mutant(
        "exec: who sends without end is ended",
        SESSIONS + "session_process.py",
        "        if self._messages > MOST_REFUSED + MOST_CALLS:\n",
        "        if False:\n",
        ESCAPES_TEST + "::test_a_flood_between_runs_ends_its_session",
    ),
    Mutant(
        "exec: an interrupt waits for no reader",
        SESSIONS + "session_process.py",
        '        self._line.post({"interrupt": self._run.number})\n',
        '        await self._line.send({"interrupt": self._run.number})\n',
        ESCAPES_TEST + "::test_one_that_reads_nothing_is_ended_in_time",
    ),
    Mutant(
        "exec: a message has so many values",
        SESSIONS + "session_line.py",
        "        if has_more_values(data, MOST_VALUES):\n",
        "        if False:\n",
        ESCAPES_TEST + "::test_a_broken_message_ends_its_session_alone",
    ),
    Mutant(
        "exec: a message that is too deep is none",
        SESSIONS + "session_process.py",
        "(msgspec.MsgspecError, UnicodeDecodeError, RecursionError)",
        "(msgspec.MsgspecError, UnicodeDecodeError)",
        ESCAPES_TEST + "::test_a_broken_message_ends_its_session_alone",
    ),
    Mutant(
        "tool module: a number that is another process by now is left alone",
        TOOLS + "tool_process.py",
        '    if process.returncode is not None and Path(f"/proc/{process.pid}").exists():\n',
        "    if False:\n",
        "tests/integration/test_tool_processes.py"
        "::test_a_number_that_is_another_process_by_now_is_left_alone",
    ),
)
