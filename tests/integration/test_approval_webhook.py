"""People are told of what waits for them: signed, at least once, and never at the job's cost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from aios_broker.access.requests import Decision
from aios_broker.contract.access import Approval
from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.storage import StorageDelete, StorageWrite
from aios_broker.contract.syscall import Syscall
from aios_workers.approvals.service import ApprovalSweep, NeedsApproval
from aios_workers.approvals.webhook import PER_ROUND, SIGNATURE, Webhook, WebhookSender, sign
from tests.state_scene import StateScene
from tests.waiting import wait_until_async

SECRET = "shared with the receiver"


@dataclass
class Receiver:
    """A web server that answers with one status after the other, the last one again and again."""

    statuses: list[int]
    seen: list[tuple[str, str, bytes]] = field(default_factory=list)  # path, signature, content
    answers: threading.Event = field(default_factory=threading.Event)  # cleared: it does not answer

    def __post_init__(self) -> None:
        receiver = self
        self.answers.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.seen.append((self.path, self.headers[SIGNATURE], content))
                receiver.answers.wait()
                waiting = receiver.statuses
                self.send_response(waiting.pop(0) if len(waiting) > 1 else waiting[0])
                self.send_header("Location", f"{receiver.url}/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver([503, 204])
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


async def wait_for_a_person(scene: StateScene, agent: str = "ann", *, more: int = 1) -> Syscall:
    """Let an agent ask for what waits; return the last syscall."""
    for number in range(more):
        path = f"{agent}-{number}.txt"
        await scene.ask(agent, StorageWrite(path, "x"))
        syscall = scene.syscall(agent, StorageDelete(path))
        with pytest.raises(NeedsApproval):
            await scene.run(syscall)
    return syscall


def sender(scene: StateScene, url: str, *, private: bool = True) -> WebhookSender:
    return WebhookSender(scene.services.store, Webhook(url, SECRET, private))


async def test_a_request_is_told_signed_until_it_is_taken(
    scene: StateScene, receiver: Receiver
) -> None:
    syscall = await wait_for_a_person(scene)
    told = sender(scene, receiver.url)
    for _ in range(4):
        await told.step()
    assert len(receiver.seen) == 2  # refused once, taken once, then left alone
    for _, signature, content in receiver.seen:
        parts = dict(part.split("=", 1) for part in signature.split(","))
        assert sign(SECRET, content, at_s=int(parts["t"]), once=parts["once"]) == signature
        approval = msgspec.json.decode(content, type=Approval)
        assert (approval.syscall_id, approval.agent) == (syscall.id, "ann")
    assert receiver.seen[0][1] != receiver.seen[1][1]  # nobody can say it again for us


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 404])
async def test_who_sends_it_elsewhere_was_not_told(
    scene: StateScene, receiver: Receiver, status: int
) -> None:
    receiver.statuses[:] = [status]
    await wait_for_a_person(scene)
    told = sender(scene, receiver.url)
    await told.step()
    await told.step()
    assert [path for path, _, _ in receiver.seen] == ["/hook", "/hook"]


async def test_a_private_network_is_not_called_unless_it_may_be(
    scene: StateScene, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    await wait_for_a_person(scene)
    for url in (receiver.url, receiver.url.replace("127.0.0.1", "localhost")):
        await sender(scene, url, private=False).step()
    assert receiver.seen == []
    assert "AIOS_APPROVAL_WEBHOOK_PRIVATE" in caplog.text


@pytest.mark.parametrize(
    "host", ["168.63.129.16", "192.0.0.192", "[64:ff9b::a9fe:a9fe]", "[::ffff:127.0.0.1]"]
)
async def test_no_address_is_called_that_only_looks_like_the_internets(
    scene: StateScene, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    await wait_for_a_person(scene)
    await sender(scene, f"http://{host}/hook", private=False).step()
    assert "AIOS_APPROVAL_WEBHOOK_PRIVATE" in caplog.text


async def test_a_receiver_that_is_away_stops_nothing(scene: StateScene) -> None:
    services = scene.services
    await wait_for_a_person(scene)
    await sender(scene, "http://127.0.0.1:9/").step()
    sweep = ApprovalSweep(services.store, services.functions, services.keys)
    assert await sweep.sweep() == 0


async def test_a_receiver_that_does_not_answer_holds_up_nobodys_decision(
    scene: StateScene, receiver: Receiver
) -> None:
    receiver.answers.clear()
    syscall = await wait_for_a_person(scene)
    telling = asyncio.create_task(sender(scene, receiver.url).step())
    try:
        await wait_until_async(lambda: receiver.seen)
        await scene.decide(syscall.id, Decision("denied"))
        await scene.cancel(syscall)  # so that there is nothing to put back
        services = scene.services
        async with asyncio.timeout(5.0):
            await ApprovalSweep(services.store, services.functions, services.keys).sweep()
        [row] = await scene.rows("SELECT resumed_at FROM approval")
        assert row.resumed_at is not None
        assert not telling.done()
    finally:
        receiver.answers.set()
        await telling


async def test_one_tenant_does_not_hide_what_another_waits_for(
    scene: StateScene, receiver: Receiver
) -> None:
    receiver.statuses[:] = [204]
    await wait_for_a_person(scene, more=PER_ROUND + 3)
    scene.tenant = "acme"
    theirs = (await wait_for_a_person(scene, "zoe")).id
    await sender(scene, receiver.url).step()
    told = {
        msgspec.json.decode(content, type=Approval).syscall_id for _, _, content in receiver.seen
    }
    assert len(told) == PER_ROUND
    assert theirs in told


@pytest.mark.parametrize(
    ("url", "secret", "field"),
    [
        ("https://hooks.example", "", "AIOS_APPROVAL_WEBHOOK_SECRET"),
        ("https://hooks.example", "short", "AIOS_APPROVAL_WEBHOOK_SECRET"),
        ("file:///etc/passwd", SECRET, "AIOS_APPROVAL_WEBHOOK"),
        ("data:,x", SECRET, "AIOS_APPROVAL_WEBHOOK"),
        ("ftp://127.0.0.1/x", SECRET, "AIOS_APPROVAL_WEBHOOK"),
        ("https://", SECRET, "AIOS_APPROVAL_WEBHOOK"),
    ],
)
def test_what_could_not_be_told_or_believed_is_refused(url: str, secret: str, field: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        Webhook(url, secret)
    assert refused.value.field == field
