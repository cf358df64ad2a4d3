"""One id that is attached to and submitted at one client, and a map that has failed."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from aios_broker.client.pending import Pending
from aios_broker.client.session import Limits, Session
from aios_broker.client.transport import Attached, CallStatus, Outcome
from aios_broker.contract.errors import KernelError, QueueFull
from aios_broker.contract.ids import Ids
from aios_broker.contract.names import Module, Owner
from aios_broker.contract.reply import Chunk, EchoResult, Heard, Reply, encode, failure
from aios_broker.contract.syscall import Syscall, ToolEcho
from aios_sdk.call import PORTION, Batch, Call
from tests.waiting import wait_until_async

ADA = Owner("default", "ada")
IDS = Ids(b"secret", ADA)


class Kernel:
    """A transport to a kernel in memory, which answers when and what a test says."""

    result_ttl_s = 60.0

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.stored: dict[str, bytes] = {}
        self.pushed: asyncio.Queue[bytes] = asyncio.Queue()
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()  # until it is set an attach hears nothing
        self.answers.set()
        self.said: dict[str, str] = {}  # what was streamed of each
        self.refuses_first = False
        self.published = 0

    async def open(self) -> None:
        """Be there."""

    async def aclose(self) -> None:
        """Leave nothing behind."""

    async def submit(self, syscalls: Sequence[Syscall]) -> list[Outcome]:
        outcomes: list[Outcome] = [self._outcome(each.id) for each in syscalls]
        if self.refuses_first and not self.published:
            outcomes[0] = QueueFull("the queue is full", retry_after_s=1.0, remedy="wait")
        self.published += len(syscalls)
        return outcomes

    def _outcome(self, syscall_id: str) -> Outcome:
        if syscall_id in self.stored:
            return Attached("finished", "tool", self.stored[syscall_id])
        self.known.add(syscall_id)
        return None

    def ids(self, owner: Owner) -> Ids:
        return Ids(b"secret", owner)

    async def cancel(
        self, ids: Sequence[str], module: Module, error: KernelError, owner: Owner | None
    ) -> list[bool]:
        return [True] * len(ids)

    async def attach(
        self,
        syscall_id: str,
        module: Module | None,
        owner: Owner | None,
        heard: Heard | None = None,
    ) -> Attached:
        said = self.said.get(syscall_id)
        missing = () if said is None else (Chunk(syscall_id, 0, said),)
        is_known = syscall_id in self.known
        seen = Attached("running", "llm", None, missing) if is_known else Attached(None)
        self.asked.set()
        await self.answers.wait()
        return seen

    async def status(self, syscall_id: str, owner: Owner | None) -> CallStatus | None:
        return None

    async def messages(self) -> list[bytes]:
        return [await self.pushed.get()]


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
async def session(kernel: Kernel) -> AsyncIterator[Session]:
    async with Session(kernel, Limits()) as session:
        yield session


def echo(syscall_id: str) -> Syscall:
    return Syscall(syscall_id, "ada", ToolEcho("x"))


async def test_who_attached_too_early_hears_the_submission_and_nobody_else_is_harmed(
    kernel: Kernel, session: Session
) -> None:
    kernel.answers.clear()
    tasks, same = len(session._tasks), IDS.fresh()
    attached = session.attach(same, ADA)
    await asyncio.wait_for(kernel.asked.wait(), timeout=5)  # the kernel did not know it then ...
    submitted, other = session.submit(echo(same)), session.submit(echo(IDS.fresh()))
    await submitted.accepted  # ... and does now
    await wait_until_async(lambda: submitted.waiters == 1)  # the attached one follows
    kernel.answers.set()
    await wait_until_async(lambda: len(session._tasks) == tasks)  # the old answer has been read
    kernel.pushed.put_nowait(encode(Reply(same, EchoResult("x"))))
    kernel.pushed.put_nowait(encode(Reply(other.id, EchoResult("y"))))

    for pending in (attached, submitted, other):
        await asyncio.wait_for(pending.ended, timeout=5)
        assert pending.state == "ended"


async def test_a_submission_that_finds_the_reply_ends_who_attached_too(
    kernel: Kernel, session: Session
) -> None:
    same = IDS.fresh()
    kernel.known.add(same)
    attached = session.attach(same, ADA)
    await attached.accepted
    kernel.stored[same] = encode(Reply(same, EchoResult("x")))

    submitted = session.submit(echo(same))

    for pending in (submitted, attached):
        await asyncio.wait_for(pending.ended, timeout=5)
        assert pending.state == "ended"


async def test_a_map_that_has_failed_begins_no_more(kernel: Kernel, session: Session) -> None:
    kernel.refuses_first = True
    begun: list[Pending] = []

    def begin(syscall: Syscall) -> Call[EchoResult]:
        begun.append(session.submit(syscall))
        return Call(session, begun[-1], 10.0)

    syscalls = [echo(IDS.fresh()) for _ in range(20 * PORTION)]
    batch = Batch(begin, syscalls, at_once=None, return_errors=False)

    with pytest.raises(QueueFull):
        await batch.results()

    await asyncio.wait([each.accepted for each in begun], timeout=5)
    assert PORTION <= kernel.published == len(begun) <= len(syscalls) / 4


async def test_a_reply_that_comes_first_waits_for_the_text_before_it(
    kernel: Kernel, session: Session
) -> None:
    """Who attaches has asked for the text; the reply of a failure does not have it."""
    same = IDS.fresh()
    kernel.known.add(same)
    kernel.said[same] = "one two"
    kernel.answers.clear()
    attached, other = session.attach(same, ADA), session.submit(echo(IDS.fresh()))
    await asyncio.wait_for(kernel.asked.wait(), timeout=5)
    kernel.pushed.put_nowait(encode(failure(same, QueueFull("it broke"))))
    kernel.pushed.put_nowait(encode(Reply(other.id, EchoResult("y"))))
    await asyncio.wait_for(other.ended, timeout=5)  # so the first message has been heard, too
    kernel.answers.set()

    await asyncio.wait_for(attached.ended, timeout=5)

    assert [chunk.text for chunk in attached.chunks] == ["one two"]
    assert attached.reply is not None
    assert attached.reply.error is not None
