"""Exec sessions on a running worker: what a run returns, what it keeps, how a session ends."""

import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from aios_broker.contract.errors import QuotaExceeded, SessionLost, UnknownSession
from aios_broker.contract.exec import (
    ExecClose,
    ExecInterrupt,
    ExecList,
    ExecOpen,
    ExecOutcome,
    ExecReset,
    ExecRun,
    ExecSession,
    ExecSessions,
    SessionLimits,
)
from aios_broker.ledger.journal import metadata_of, read_entry
from aios_broker.queues import exec_sessions
from aios_broker.queues.keys import Keys
from tests.caller import Caller, WorkerProcess
from tests.scheduler_scene import scheduler
from tests.tool_scene import ToolScene, answer, with_tools
from tests.waiting import wait_until_async

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    async with aclosing(Caller(redis_url)) as user:
        user.patience_s = 60.0  # each session starts a Python, maybe beside others
        yield user


@pytest.fixture
async def tools(
    caller: Caller, tmp_path: Path, tool_names: tuple[str, ...]
) -> AsyncIterator[ToolScene]:
    scene = ToolScene(tmp_path, *tool_names)
    async with scene.worker(caller.url):
        yield scene


async def opened(caller: Caller, **fields: Any) -> ExecSession:  # noqa: ANN401
    session = await answer(caller, ExecOpen(**fields))
    assert isinstance(session, ExecSession)
    return session


async def run(caller: Caller, session: str, code: str, **fields: Any) -> ExecOutcome:  # noqa: ANN401
    outcome = await answer(caller, ExecRun(session, code, **fields))
    assert isinstance(outcome, ExecOutcome)
    return outcome


async def listed(caller: Caller, **fields: Any) -> ExecSessions:  # noqa: ANN401
    found = await answer(caller, ExecList(), **fields)
    assert isinstance(found, ExecSessions)
    return found


async def test_what_a_run_defines_is_there_for_the_next(tools: ToolScene, caller: Caller) -> None:
    session = await opened(caller, name="notebook")

    first = await run(caller, session.id, "import sys\nx = 40\nprint('out')\nsys.stderr.write('e')")
    second = await run(caller, session.id, "x + 2")

    assert session.sandbox == "bubblewrap"
    assert (first.stdout, first.stderr, first.number) == ("out\n", "e", 1)
    assert (second.value, second.number, second.error) == ("42", 2, None)


async def test_files_and_rich_results_come_back(tools: ToolScene, caller: Caller) -> None:
    session = await opened(caller)
    code = """
class Table:
    def _repr_html_(self):
        return "<b>1</b>"
open("made.txt", "w").write("hello")
Table()
"""
    made = await run(caller, session.id, code)
    again = await run(caller, session.id, "await __import__('asyncio').sleep(0, 'awaited')")

    assert made.rich == ({"text/html": "<b>1</b>"},)
    assert [(one.path, one.bytes, one.content) for one in made.files] == [
        ("made.txt", 5, "aGVsbG8=")
    ]
    assert (again.value, again.files) == ("'awaited'", ())


async def test_what_code_raises_is_told_with_its_traceback(
    tools: ToolScene, caller: Caller
) -> None:
    session = await opened(caller)

    outcome = await run(caller, session.id, "def f():\n    return 1 / 0\nf()")

    assert outcome.error is not None
    assert outcome.error.name == "ZeroDivisionError"
    assert "return 1 / 0" in outcome.error.traceback
    assert "python_runs" not in outcome.error.traceback
    assert (await run(caller, session.id, "1 + 1")).value == "2"


@pytest.mark.parametrize("loop", ["while True: pass", "import time; time.sleep(600)"])
async def test_an_endless_loop_is_interrupted_and_the_session_goes_on(
    tools: ToolScene, caller: Caller, loop: str
) -> None:
    session = await opened(caller)
    await run(caller, session.id, "kept = 7")
    [endless] = await caller.submit(ExecRun(session.id, loop))

    async def is_busy() -> bool:
        found = await listed(caller)
        return found.sessions[0].state == "busy"

    await wait_until_async(is_busy)
    outcome = None
    await answer(caller, ExecInterrupt(session.id))
    outcome = (await caller.hear(endless)).unwrap()

    assert isinstance(outcome, ExecOutcome)
    assert outcome.error is not None
    assert outcome.error.name == "KeyboardInterrupt"
    assert (await run(caller, session.id, "kept")).value == "7"


async def test_a_run_that_takes_too_long_is_interrupted(tools: ToolScene, caller: Caller) -> None:
    session = await opened(caller)

    outcome = await run(caller, session.id, "print('a')\nwhile True: pass", timeout_s=0.5)

    assert outcome.error is not None
    assert outcome.error.name == "Timeout"
    assert outcome.stdout == "a\n"
    assert (await run(caller, session.id, "1")).value == "1"


async def test_reset_leaves_nothing(tools: ToolScene, caller: Caller) -> None:
    session = await opened(caller)
    await run(caller, session.id, "x = 1\nopen('f', 'w').close()")

    again = await answer(caller, ExecReset(session.id))
    outcome = await run(caller, session.id, "import os\n('x' in globals(), os.listdir())")

    assert isinstance(again, ExecSession)
    assert again.runs == 0
    assert outcome.value == "(False, [])"


async def test_a_shell_keeps_its_folder_and_variables(tools: ToolScene, caller: Caller) -> None:
    session = await opened(caller, interpreter="shell")

    await run(caller, session.id, "mkdir d; cd d; X='a b'; echo 'it'\\''s'")
    outcome = await run(caller, session.id, 'echo "$X" in ${PWD##*/}; cat; echo no >&2; false')

    assert (outcome.stdout, outcome.stderr) == ("a b in d\n", "no\n")
    assert outcome.error is not None
    assert (outcome.error.name, outcome.error.message) == ("ExitCode", "1")


async def test_a_shell_that_loops_is_interrupted(tools: ToolScene, caller: Caller) -> None:
    session = await opened(caller, interpreter="shell")
    await run(caller, session.id, "X=kept")

    outcome = await run(caller, session.id, "while :; do :; done", timeout_s=0.5)
    slept = await run(caller, session.id, "sleep 600", timeout_s=0.5)

    assert outcome.error is not None
    assert outcome.error.name == "Timeout"
    assert slept.error is not None
    assert (await run(caller, session.id, "echo $X")).stdout == "kept\n"


async def test_a_session_is_its_agents_alone(tools: ToolScene, caller: Caller) -> None:
    session = await opened(caller)

    assert (await listed(caller, tenant="other")).sessions == ()
    for body in (
        ExecRun(session.id, "1"),
        ExecInterrupt(session.id),
        ExecReset(session.id),
        ExecClose(session.id),
    ):
        with pytest.raises(UnknownSession):
            await answer(caller, body, tenant="other")
    assert (await run(caller, session.id, "1")).value == "1"


async def test_one_that_is_idle_ends_and_says_so(tools: ToolScene, caller: Caller) -> None:
    session = await opened(caller, idle_s=0.3)

    async def is_lost() -> bool:
        found = await listed(caller)
        return found.sessions[0].state == "lost"

    await wait_until_async(is_lost)
    with pytest.raises(SessionLost, match=r"nothing was run in it for 0\.3 s"):
        await run(caller, session.id, "1")


async def test_a_loss_is_told_once(
    tools: ToolScene, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await opened(caller)
    with pytest.raises(SessionLost):
        await run(caller, session.id, "import os; os._exit(3)")
    with pytest.raises(SessionLost, match="its interpreter ended"):  # what was under way then
        await run(caller, session.id, "1")
    assert [one.state for one in (await listed(caller)).sessions] == ["lost"]

    monkeypatch.setattr(exec_sessions, "KEPT_TOLD_S", 0.0)

    assert (await listed(caller)).sessions == ()
    with pytest.raises(UnknownSession):
        await run(caller, session.id, "1")


async def test_what_is_sent_to_a_session_that_opens_waits_for_it(
    tools: ToolScene, caller: Caller
) -> None:
    async def is_known() -> bool:
        return (await listed(caller)).sessions != ()  # it is written down first

    for runs in (True, False):
        [opening] = await caller.submit(ExecOpen())
        await wait_until_async(is_known)
        if runs:
            assert (await run(caller, opening, "1")).value == "1"
        await answer(caller, ExecClose(opening))

        assert isinstance((await caller.hear(opening)).unwrap(), ExecSession)
        assert (await listed(caller)).sessions == ()


async def test_one_that_was_closed_is_gone(tools: ToolScene, caller: Caller) -> None:
    session = await opened(caller)

    closed = await answer(caller, ExecClose(session.id))

    assert isinstance(closed, ExecSession)
    assert closed.state == "closed"
    with pytest.raises(UnknownSession):
        await run(caller, session.id, "1")
    assert (await listed(caller)).sessions == ()


BOMBS = {
    "leave": ("import os; os._exit(3)", "its interpreter ended"),
    "segfault": ("import os; os.kill(os.getpid(), 11)", "its interpreter ended"),
    "forks": (
        "import os, time\nfor _ in range(40):\n    if os.fork() == 0: time.sleep(600)\n"
        "time.sleep(600)",
        "more processes",
    ),
    "empty files": (
        "import time\nfor n in range(20_001):\n    open(str(n), 'wb').close()\ntime.sleep(600)",
        "more files than it may",
    ),
    "deaf": (
        "import signal, time\nsignal.signal(2, lambda *_: None)\nwhile True: time.sleep(1)",
        "did not end when it was interrupted",
    ),
    "socket": (
        "import os\nfor n in range(3, 64):\n    try: os.write(n, b'\\xff' * 64)\n"
        "    except OSError: pass\nimport time; time.sleep(600)",
        "it sent what no session sends",
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
async def test_a_bomb_ends_its_session_alone(tools: ToolScene, caller: Caller, kind: str) -> None:
    code, reason = BOMBS[kind]
    other = await opened(caller)
    await run(caller, other.id, "x = 5")
    limits = SessionLimits(file_bytes=4 * 1024**2, processes=16)
    session = await opened(caller, limits=limits)

    with pytest.raises(SessionLost, match=reason):
        await run(caller, session.id, code, timeout_s=10.0 if kind != "deaf" else 0.5)

    assert (await run(caller, other.id, "x")).value == "5"


async def test_memory_and_output_have_limits(tools: ToolScene, caller: Caller) -> None:
    limits = SessionLimits(memory_bytes=256 * 1024**2, output_bytes=1000)
    session = await opened(caller, limits=limits)

    eaten = await run(caller, session.id, "x = b'x' * 10**9")
    printed = await run(caller, session.id, "for _ in range(10**5): print('x' * 100)")

    assert eaten.error is not None
    assert eaten.error.name == "MemoryError"
    assert (len(printed.stdout), printed.output_cut) == (1000, True)


async def test_an_agent_has_so_many_and_no_more(tmp_path: Path, caller: Caller) -> None:
    async with ToolScene(tmp_path).worker(caller.url, exec_agent_sessions=1):
        first = await opened(caller)
        with pytest.raises(QuotaExceeded, match="as many exec sessions as it may: 1") as refused:
            await opened(caller)
        assert refused.value.field == "quota.agent_sessions"
        await answer(caller, ExecClose(first.id))
        await opened(caller)


@with_tools("add")
async def test_twenty_calls_of_a_run_are_twenty_syscalls_of_its_agent(
    tools: ToolScene, caller: Caller
) -> None:
    session = await opened(caller)
    code = """
from kernel import tools, KernelError
total = sum(tools.me.add(a=n, b=1) for n in range(20))
try:
    tools.call("me/add", a="no number")
except KernelError as error:
    refused = error.code
(total, refused)
"""

    [syscall_id] = await caller.submit(ExecRun(session.id, code))
    outcome = (await caller.hear(syscall_id)).unwrap()

    assert isinstance(outcome, ExecOutcome)
    assert outcome.value == "(210, 'invalid-arguments')"
    assert outcome.calls == 21
    entries = await caller.connection.execute("XRANGE", Keys().journal, "-", "+")
    told = [metadata_of(each) for entry in entries for each in read_entry(entry)]
    children = [one for one in told if one is not None and one.asked_by == syscall_id]
    assert [(one.agent, one.kind) for one in children] == [("ada", "tool.call")] * 21


@with_tools("add", "say")
async def test_code_calls_what_its_session_allows_and_nothing_else(
    tools: ToolScene, caller: Caller
) -> None:
    session = await opened(caller, tools=("me/say",))
    code = """
import kernel
said = []
for kind, body in (
    ("tool.call", {"tool": "me/add", "arguments": {"a": 1}}),
    ("exec.list", {}),
    ("access.register", {"agent": "eve"}),
    ("memory.search", {"query": 1}),
    ("tool.call", {"tool": "me/say", "arguments": {"words": []}, "agent": "eve"}),
):
    try:
        said.append(kernel._call(kind, body))
    except kernel.KernelError as error:
        said.append(error.code)
said.append(kernel.tools.me.say(words=["a"]))
said
"""

    outcome = await run(caller, session.id, code)

    assert outcome.error is None
    refused = ["access-denied", *["invalid-syscall"] * 4]
    assert outcome.value == str([*refused, 1])


async def test_runs_wait_for_their_turn_and_print_as_they_go(
    tools: ToolScene, caller: Caller
) -> None:
    session = await opened(caller)
    await run(caller, session.id, "seen = []")

    ids = await caller.submit(*(ExecRun(session.id, f"seen.append({n})") for n in range(8)))
    await caller.hear_all(ids)

    assert (await run(caller, session.id, "sorted(seen)")).value == str(list(range(8)))


async def test_a_run_is_carried_to_the_worker_that_has_the_session(
    tools: ToolScene, caller: Caller, tmp_path: Path
) -> None:
    """Of two workers one has it; whichever takes a run, it comes there."""
    sessions = [await opened(caller) for _ in range(3)]
    (tmp_path / "other").mkdir()
    async with ToolScene(tmp_path / "other").worker(caller.url):
        sessions += [await opened(caller) for _ in range(3)]
        for number, session in enumerate(sessions * 4):
            before = await run(caller, session.id, "print('p')\nn = globals().get('n', 0) + 1\nn")
            assert (before.value, before.stdout) == (str(number // len(sessions) + 1), "p\n")
        [endless] = await caller.submit(*[ExecRun(sessions[0].id, "while True: pass")])
        for session in sessions[1:]:
            assert (await answer(caller, ExecReset(session.id))).runs == 0  # type: ignore[union-attr]

        async def has_ended() -> bool:
            await answer(caller, ExecInterrupt(sessions[0].id))
            found = await listed(caller)
            return found.sessions[0].state == "idle"

        await wait_until_async(has_ended)
        assert (await caller.hear(endless)).error is None
        assert len({session.worker for session in sessions}) == 2


async def test_a_session_of_a_worker_that_is_killed_is_lost_and_says_so(
    tools: ToolScene, caller: Caller, tmp_path: Path
) -> None:
    """Runs of it that are under way, and those that wait, hear it; they do not wait for long."""
    folder = tmp_path / "other"
    folder.mkdir()
    settings = {"aios_tools": ToolScene(folder).file, "aios_state_dir": folder}
    with WorkerProcess(caller.url, "tool", **settings) as worker:
        assert worker.process is not None
        its_name = f".{worker.process.pid}-"

        async def is_there() -> ExecSession | None:
            session = await opened(caller)
            if its_name in session.worker:
                return session
            await answer(caller, ExecClose(session.id))
            return None

        session = await wait_until_async(is_there, caller.patience_s)
        assert session is not None
        sleeping = [ExecRun(session.id, "import time; time.sleep(600)")] * 4
        ids = await caller.submit(*sleeping, deadline_s=120.0)

        async def is_busy() -> bool:
            found = await listed(caller)
            return any(one.state == "busy" for one in found.sessions)

        await wait_until_async(is_busy)
        worker.send(signal.SIGKILL)
        await worker.left()
        async with scheduler(caller.url):  # it gives out what the worker had
            replies = await caller.hear_all(ids)

    codes = {reply.error.code for reply in replies if reply.error is not None}
    assert len(replies) == 4
    assert codes == {"session-lost"}
    with pytest.raises(SessionLost, match="its worker died"):
        await run(caller, session.id, "1")
    assert not [pid for pid in processes() if str(folder) in pid]


def processes() -> set[str]:
    """Return the command lines of all sessions' processes."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "sessions/interpreter/__main__.py" in command:
                found.add(command)
    return found
