"""People are told of what waits for them: signed, at least once, and never at the job's cost."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from aios_broker.contract.access import Approval
from aios_broker.contract.storage import StorageDelete, StorageWrite
from aios_workers.approvals.service import SIGNATURE, ApprovalSweep, NeedsApproval, Webhook
from tests.state_scene import StateScene

SECRET = "shared with the receiver"


class Receiver:
    """A web server that refuses the first request and takes those that follow."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.seen.append((self.headers[SIGNATURE], content))
                self.send_response(503 if len(receiver.seen) == 1 else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    yield receiver
    receiver.server.shutdown()
    thread.join()
    receiver.server.server_close()


async def test_a_request_is_told_signed_until_it_is_taken(
    scene: StateScene, receiver: Receiver
) -> None:
    services = scene.services
    sweep = ApprovalSweep(
        services.store, services.functions, services.keys, Webhook(receiver.url, SECRET)
    )
    await scene.ask("ann", StorageWrite("a.txt", "x"))
    syscall = scene.syscall("ann", StorageDelete("a.txt"))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    # Nothing of it stands in a queue here: keep the sweep from closing it as ended.
    await services.functions.connection.execute(
        "HSET", services.keys.own("live:storage"), syscall.id, ""
    )
    for _ in range(4):
        await sweep.sweep()
    assert len(receiver.seen) == 2  # refused once, taken once, then left alone
    for signature, content in receiver.seen:
        expected = hmac.new(SECRET.encode(), content, hashlib.sha256).hexdigest()
        assert signature == f"sha256={expected}"
        told = msgspec.json.decode(content, type=Approval)
        assert (told.syscall_id, told.agent, told.operation) == (syscall.id, "ann", "delete")


async def test_a_receiver_that_is_away_stops_nothing(scene: StateScene) -> None:
    services = scene.services
    sweep = ApprovalSweep(
        services.store, services.functions, services.keys, Webhook("http://127.0.0.1:9/", SECRET)
    )
    await scene.ask("ann", StorageWrite("a.txt", "x"))
    syscall = scene.syscall("ann", StorageDelete("a.txt"))
    with pytest.raises(NeedsApproval):
        await scene.run(syscall)
    assert await sweep.sweep() == 0
