"""What code in a session tries by the kernel's socket, and with what it finds around itself."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from aios_broker.contract.errors import SessionLost, UnknownSession
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
from aios_broker.contract.tools import ToolCards, ToolList
from aios_broker.ledger.journal import metadata_of, read_entry
from aios_broker.queues.keys import Keys
from aios_broker.queues.records import JobMetadata
from tests.caller import Caller
from tests.tool_scene import NAMES, ToolScene, answer, with_tools
from tests.waiting import wait_until_async

pytestmark = pytest.mark.timeout(120)
SOON_S = 60.0
TOLD = 8  # cards of tools
# What code there can do with the socket itself.
RAW = """
import json, queue, socket, struct, time, kernel
line = kernel._ask.__self__
def send(data):
    with line._sending:
        line._socket.sendall(struct.pack(">I", len(data)) + data)
def ask(number, **fields):
    answers = line._asked[number] = queue.SimpleQueue()
    send(json.dumps({"call": number, **fields}).encode())
    return answers.get()
"""


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[Caller]:
    async with aclosing(Caller(redis_url)) as user:
        user.patience_s = SOON_S
        yield user


@pytest.fixture
async def tools(
    caller: Caller, tmp_path: Path, tool_names: tuple[str, ...]
) -> AsyncIterator[ToolScene]:
    scene = ToolScene(tmp_path, *tool_names)
    async with scene.worker(caller.url):
        yield scene


async def opened(caller: Caller, agent: str = "ada", **fields: Any) -> ExecSession:  # noqa: ANN401
    session = await answer(caller, ExecOpen(**fields), agent=agent)
    assert isinstance(session, ExecSession)
    assert session.sandbox == "bubblewrap"
    return session


async def run(
    caller: Caller, session: ExecSession, code: str, agent: str = "ada", timeout_s: float = 60.0
) -> ExecOutcome:
    body = ExecRun(session.id, code, timeout_s=timeout_s)
    outcome = await answer(caller, body, agent=agent)
    assert isinstance(outcome, ExecOutcome)
    return outcome


async def asked(caller: Caller) -> list[JobMetadata]:
    """Return what was asked for by a run."""
    entries = await caller.connection.execute("XRANGE", Keys().journal, "-", "+")
    told = [metadata_of(each) for entry in entries for each in read_entry(entry)]
    return [one for one in told if one is not None and one.asked_by]


async def test_two_agents_of_a_tenant_see_nothing_of_each_other(
    tools: ToolScene, caller: Caller
) -> None:
    ann, bob = await opened(caller, "ann"), await opened(caller, "bob")
    code = """
import os, socket, subprocess
secret = "of ann"
open("secret.txt", "w").write(secret)
open("/tmp/secret.txt", "w").write(secret)
tcp = socket.create_server(("127.0.0.1", 0))
abstract = socket.socket(socket.AF_UNIX); abstract.bind("\\0of-ann"); abstract.listen()
named = socket.socket(socket.AF_UNIX); named.bind("/tmp/of-ann"); named.listen()
child = subprocess.Popen(["sleep", "601"])
print(os.getcwd(), tcp.getsockname()[1])
"""
    folder, port = (await run(caller, ann, code, "ann")).stdout.split()
    code = f"""
import os, socket
def reaches(family, address):
    try:
        with socket.socket(family) as one:
            one.connect(address)
        return address
    except OSError:
        return None
def reads(path):
    try:
        return open(path).read()
    except OSError:
        return None
found = [
    reaches(socket.AF_INET, ("127.0.0.1", {port})),
    reaches(socket.AF_UNIX, "\\0of-ann"),
    reaches(socket.AF_UNIX, "/tmp/of-ann"),
    reads("{folder}/secret.txt"), reads("/tmp/secret.txt"), os.path.exists("{folder}"),
    "secret" in globals(),
    [one for one in os.listdir("/proc") if "601" in (reads(f"/proc/{{one}}/cmdline") or "")],
    set(os.listdir(os.path.dirname(os.getcwd()))) - {{os.path.basename(os.getcwd())}},
]
[one for one in found if one]
"""
    outcome = await run(caller, bob, code, "bob")
    assert (outcome.error, outcome.value) == (None, "[]")

    for body in (ExecRun(ann.id, "1"), ExecInterrupt(ann.id), ExecReset(ann.id), ExecClose(ann.id)):
        with pytest.raises(UnknownSession):
            await answer(caller, body, agent="bob")
    listed = await answer(caller, ExecList(), agent="bob")
    assert isinstance(listed, ExecSessions)
    assert [one.id for one in listed.sessions] == [bob.id]
    still = "(secret, open('secret.txt').read(), child.poll())"
    assert (await run(caller, ann, still, "ann")).value == "('of ann', 'of ann', None)"


@with_tools("add")
async def test_a_call_is_its_agents_whatever_it_says(tools: ToolScene, caller: Caller) -> None:
    session = await opened(caller)
    code = (
        RAW
        + """
body = {"type": "tool.call", "tool": "me/add", "arguments": {"a": 1}}
outside = ask(9001, body=body, agent="eve", tenant="other", id="f" * 32, asked_by="f" * 32)
inside = ask(9002, body={**body, "agent": "eve"})
(outside["value"]["value"], inside["error"]["code"])
"""
    )
    outcome = await run(caller, session, code)

    assert outcome.value == "(2, 'invalid-syscall')"
    told = await asked(caller)
    assert {(one.agent, one.kind) for one in told} == {("ada", "tool.call")}
    assert len({one.tenant for one in told} - {"other"}) == len({one.tenant for one in told}) == 1
    assert "f" * 32 not in {one.asked_by for one in told}


BROKEN = {
    "too long": 'line._socket.sendall(struct.pack(">I", 0xFFFFFFFF))',
    "no JSON": 'send(b"\\xff\\xfe{")',
    "half a character": 'send(b\'{"call": 1, "body": "\\\\ud800"}\')',
    "a list": 'send(b"[1]")',
    "deep": 'send(b\'{"call": 1, "body": \' + b"[" * 100_000 + b"]" * 100_000 + b"}")',
    "of no kind": 'send(b"{}")',
    "a call without a number": 'send(b\'{"call": "one", "body": {}}\')',
    "an ending of other types": 'send(b\'{"end": 1, "rich": [1]}\')',
    "many values": 'send(b\'{"call": 1, "body": [\' + b"0," * 2_000_000 + b"0]}")',
    "half a message": (
        'line._socket.sendall(struct.pack(">I", 100) + b"{"); line._socket.shutdown(2)'
    ),
    "a flood": 'while True: send(b\'{"call": 1, "body": {"type": "tool.list"}}\')',
    "a flood of nothing": "while True: send(b'{\"end\": 0}')",
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_message_ends_its_session_alone(
    tools: ToolScene, caller: Caller, kind: str
) -> None:
    other, session = await opened(caller), await opened(caller)
    await run(caller, other, "x = 5")

    ended = "its interpreter ended" if kind == "half a message" else "sent what no session sends"
    with pytest.raises(SessionLost, match=ended):
        await run(caller, session, f"{RAW}\n{BROKEN[kind]}\ntime.sleep(600)", timeout_s=30.0)

    assert (await run(caller, other, "x")).value == "5"


async def test_a_flood_between_runs_ends_its_session(tools: ToolScene, caller: Caller) -> None:
    session = await opened(caller)
    code = f"""{RAW}
import threading
def flood():
    time.sleep(0.5)
    while True:
        send(b'{{"call": 1, "body": {{}}}}')
threading.Thread(target=flood, daemon=True).start()
"""
    await run(caller, session, code)

    async def is_lost() -> bool:
        listed = await answer(caller, ExecList())
        assert isinstance(listed, ExecSessions)
        return [one.state for one in listed.sessions] == ["lost"]

    await wait_until_async(is_lost, SOON_S)
    with pytest.raises(SessionLost, match="more messages than it may"):
        await run(caller, session, "1")
    assert await asked(caller) == []  # what came between runs asked for nothing


@with_tools(*NAMES)
async def test_one_that_reads_nothing_is_ended_in_time(tools: ToolScene, caller: Caller) -> None:
    """Answers and the interrupt find no reader: neither may hold the worker up."""
    other, session = await opened(caller), await opened(caller)

    async def are_told() -> bool:
        found = await answer(caller, ToolList())
        assert isinstance(found, ToolCards)
        return len(found.tools) >= TOLD

    await wait_until_async(are_told, SOON_S)
    code = f"""{RAW}
line._received = lambda: time.sleep(600)
for n in range(200):  # cards of a dozen tools each: more than a socket holds
    send(json.dumps({{"call": n, "body": {{"type": "tool.list"}}}}).encode())
time.sleep(600)
"""
    with pytest.raises(SessionLost, match="did not end when it was interrupted"):
        await run(caller, session, code, timeout_s=6.0)
    assert (await run(caller, other, "1 + 1")).value == "2"


async def test_descriptors_that_are_passed_stay_nowhere(tools: ToolScene, caller: Caller) -> None:
    session = await opened(caller)
    await run(caller, session, "1")  # all that a run opens is open
    before = len(os.listdir("/proc/self/fd"))
    code = f"""{RAW}
reading, writing = socket.socketpair()
message = b'{{"call": 7, "body": {{"type": "exec.list"}}}}'
message = struct.pack(">I", len(message)) + message
for n in range(20):
    with line._sending:
        socket.send_fds(line._socket, [message], [writing.fileno()] * 50)
writing.close()
time.sleep(0.5)
reading.setblocking(False)
reading.recv(1)  # who else has it open?
"""
    outcome = await run(caller, session, code)
    after = len(os.listdir("/proc/self/fd"))

    assert outcome.error is None  # the other end is closed everywhere
    assert outcome.value == "b''"
    assert after <= before + 10  # a thousand were sent; the worker runs in this process


async def test_after_its_session_was_closed_nothing_calls(tools: ToolScene, caller: Caller) -> None:
    session = await opened(caller)
    code = """
import threading, time, kernel
def again():
    while True:
        kernel.tools.me.add(a=1)
thread = threading.Thread(target=again, daemon=True); thread.start()
time.sleep(0.5)
"""
    outcome = await run(caller, session, code)
    assert outcome.calls > 0
    await answer(caller, ExecClose(session.id))
    ids = {one.asked_by for one in await asked(caller)}
    count = len(await asked(caller))

    other = await opened(caller)
    assert (await run(caller, other, "1")).value == "1"
    assert len(ids) == 1
    assert len(await asked(caller)) <= count + 2  # that the closed one's last call left
    with pytest.raises(UnknownSession):
        await run(caller, session, "1")


FILL = "for n in range(9): open('{}/' + str(n), 'wb').write(b'x' * 10**6)"
USED_UP = {
    "processor": ("while True: pass", "CpuLimit", ""),
    "shared memory": (FILL.format("/dev/shm"), "OSError", "No space left"),
    "scratch": (FILL.format("/tmp"), "OSError", "No space left"),
    "its folder": (FILL.format("."), "OSError", "No space left"),
    "files without a name": (
        "import os\nheld = []\nfor n in range(90):\n    held.append(open('x', 'wb', 0))\n"
        "    os.unlink('x')\n    if held[-1].write(b'x' * 10**5) < 10**5: held[-1].write(b'x')",
        "OSError",
        "No space left",
    ),
    "one file": ("open('x', 'wb').write(b'x' * 10**7)", "OSError", "File too large"),
    "descriptors": ("kept = [open('/dev/null') for _ in range(5000)]", "OSError", "Too many open"),
    "addresses": ("x = bytearray(2 * 10**9)", "MemoryError", ""),
}


@pytest.mark.parametrize("kind", USED_UP)
async def test_what_a_sandbox_bounds_is_told_and_the_session_goes_on(
    tools: ToolScene, caller: Caller, kind: str
) -> None:
    code, error, words = USED_UP[kind]
    limits = SessionLimits(cpu_s=1.0, file_bytes=4 * 1024**2)
    session = await opened(caller, limits=limits)

    outcome = await run(caller, session, code)

    assert outcome.error is not None
    assert outcome.error.name == error
    assert words in outcome.error.message
    assert (await run(caller, session, "1 + 1")).value == "2"


async def test_memory_of_many_processes_together_ends_the_session(
    tools: ToolScene, caller: Caller
) -> None:
    session = await opened(caller, limits=SessionLimits(memory_bytes=128 * 1024**2))
    code = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        kept = bytearray(b"x") * (40 * 1024**2)
        time.sleep(600)
time.sleep(600)
"""
    with pytest.raises(SessionLost, match="more memory than it may"):
        await run(caller, session, code)
