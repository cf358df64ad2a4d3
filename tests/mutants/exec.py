"""The mutants of exec sessions: blocks that close them, what is told of their end, who enters."""

from tests.mutants.catalogue import Mutant

AGENTS_TEST = "tests/integration/test_exec_agents.py"
SDK = "sdk/aios_sdk/exec_session.py"

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
)
