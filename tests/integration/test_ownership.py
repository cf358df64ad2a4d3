"""Replies, ids, keys, notes and effects are their agent's: who else knows an id gains nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import pytest
import redis

from aios_broker.client.redis_transport import RedisTransport
from aios_broker.client.session import Limits, Session
from aios_broker.contract.access import AccessRegister
from aios_broker.contract.errors import AccessDenied, KernelError, KeyConflict, UnknownSyscall
from aios_broker.contract.ids import Ids
from aios_broker.contract.memory import MemoryAdd, MemoryClear, Note
from aios_broker.contract.names import Owner
from aios_broker.contract.reply import EchoResult
from aios_broker.contract.storage import StorageWrite
from aios_broker.contract.syscall import Syscall, ToolEcho, new_id
from aios_broker.contract.tokens import digest, new_token
from aios_broker.queues.functions import Functions
from aios_broker.queues.secret import KernelSecret
from aios_broker.queues.tokens import Identity, Tokens
from aios_broker.redis.connection import Connection
from aios_sdk import AsyncAgent
from aios_workers.approvals.service import NeedsApproval
from aios_workers.modules.access.secret import keep_secret
from tests.queue_user import proves
from tests.session_user import sent
from tests.state_scene import StateScene
from tests.tiny_worker import TinyWorker

LIMITS = Limits(recheck_s=60.0, patience_s=5.0, cancel_s=0.5)
VIC = Owner("acme", "vic")
OTHERS = [Owner("acme", "mal"), Owner("other", "mal"), Owner("other", "vic")]
WAITING = "SELECT a.name FROM approval p JOIN agent a ON a.id = p.agent_id WHERE p.job_id = %s"
SECRET = "the victim's secret answer"


@asynccontextmanager
async def session_of(url: str) -> AsyncIterator[Session]:
    async with Session(RedisTransport(url, "test"), LIMITS) as session:
        yield session


def echo(owner: Owner, text: str) -> Syscall:
    return Syscall(new_id(), owner.agent, ToolEcho(text), tenant=owner.tenant)


async def refused(call: Awaitable[object]) -> KernelError:
    with pytest.raises(KernelError) as caught:
        await asyncio.wait_for(call, timeout=10)
    return caught.value


def agent(url: str, owner: Owner, **options: str) -> AsyncAgent:
    return AsyncAgent(owner.agent, tenant=owner.tenant, url=url, **options)


@pytest.fixture(params=OTHERS, ids=str)
def mal(request: pytest.FixtureRequest) -> Owner:
    found: Owner = request.param
    return found


async def test_nobody_else_attaches_to_a_call_by_its_id_before_or_after_its_end(
    redis_url: str, mal: Owner
) -> None:
    async with agent(redis_url, VIC) as vic, agent(redis_url, mal) as other:
        call = vic.with_options(key="daily-report").tool.echo.start(SECRET)
        await call.accepted()
        assert isinstance(await refused(other.call(call.id).result()), UnknownSyscall)
        assert isinstance(await refused(other.call(call.id).status()), UnknownSyscall)
        assert not await other.call(call.id).cancel()
        async with TinyWorker(redis_url, "tool"):
            assert (await call.result()).text == SECRET
        assert isinstance(await refused(other.call(call.id).result()), UnknownSyscall)
        async with agent(redis_url, VIC) as later:
            assert await later.call(call.id) == EchoResult(SECRET)


async def test_an_id_is_reserved_by_nobody_else_whether_it_is_free_taken_or_over(
    redis_url: str, mal: Owner
) -> None:
    async with session_of(redis_url) as session, TinyWorker(redis_url, "tool") as worker:
        taken = session.ids(VIC).from_key("report")
        forged = msgspec.structs.replace(echo(mal, "FORGED"), id=taken)
        for _ in range(3):
            assert isinstance(await refused(session.submit(forged).taken()), AccessDenied)
            reply = await sent(session, echo(VIC, "asked"), "report").reply_within(10)
            assert reply.unwrap() == EchoResult("asked")
            with redis.Redis.from_url(redis_url) as client:
                client.delete(f"rq:job:{taken}")  # its reply has expired
    assert {each.owner for each in worker.seen} == {VIC}


async def test_agents_that_share_a_session_hear_only_their_own(redis_url: str, mal: Owner) -> None:
    async with session_of(redis_url) as session:
        early = session.attach(session.ids(VIC).from_key("k"), mal)
        pending = sent(session, echo(VIC, SECRET), "k")
        await pending.accepted
        late = session.attach(pending.id, mal)
        async with TinyWorker(redis_url, "tool"):
            assert (await pending.reply_within(10)).unwrap() == EchoResult(SECRET)
        for each in (early, late):
            await asyncio.wait_for(each.ended, timeout=10)
            assert each.reply is not None
            assert each.reply.error is not None
            assert each.reply.error.code == "unknown-syscall"


async def test_the_ids_of_keys_differ_between_kernels_and_agents(redis_url: str) -> None:
    async with session_of(redis_url) as session:
        ours = session.ids(VIC).from_key("daily-report")
        assert ours == session.ids(VIC).from_key("daily-report")
        assert ours != Ids(b"", VIC).from_key("daily-report")
        assert len({session.ids(each).from_key("daily-report") for each in (VIC, *OTHERS)}) == 4


async def test_a_redis_that_was_emptied_gets_the_secret_back(
    scene: StateScene, redis_url: str
) -> None:
    secret = KernelSecret(scene.services.functions.connection)
    before = await secret.read()
    await keep_secret(scene.store, secret)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert await secret.read() != before  # somebody came before the kernel had put it back
    await keep_secret(scene.store, secret)
    assert await secret.read() == before


# Tokens: who comes with one is that agent or nobody.


@dataclass
class Door:
    """Who may pass: a token of vic's, and what makes others worthless."""

    connection: Connection
    tokens: Tokens

    async def token(self, owner: Owner = VIC, expires_in_s: float | None = None) -> str:
        token = new_token()
        until = None if expires_in_s is None else time.time() + expires_in_s
        await self.tokens.put(digest(token), Identity(owner.agent, owner.tenant, until))
        return token


@pytest.fixture
async def door(redis_url: str) -> AsyncIterator[Door]:
    connection = Connection(redis_url)
    yield Door(connection, Tokens(connection))
    await connection.aclose()


async def test_a_token_is_exchanged_for_its_agent_and_for_nobody_else(
    redis_url: str, door: Door, mal: Owner
) -> None:
    token = await door.token()
    functions = Functions(door.connection)
    assert await proves(functions, token, VIC)
    assert not await proves(functions, token, mal)
    assert not await proves(functions, new_token(), VIC)
    assert not await proves(functions, await door.token(VIC, expires_in_s=-1.0), VIC)
    assert await proves(functions, await door.token(VIC, expires_in_s=60.0), VIC)
    await door.tokens.drop([digest(token)])
    assert not await proves(functions, token, VIC)
    async with agent(redis_url, VIC, token=token) as vic:
        assert isinstance(await refused(vic.tool.echo("hi")), AccessDenied)


async def test_of_a_batch_only_those_are_refused_whose_tokens_do_not_hold(
    redis_url: str, door: Door
) -> None:
    good, bad = await door.token(), new_token()
    async with session_of(redis_url) as session, TinyWorker(redis_url, "tool") as worker:
        calls = [
            sent(session, msgspec.structs.replace(echo(VIC, str(n)), token=token))
            for n, token in enumerate((good, bad, "", bad, good))
        ]
        await asyncio.gather(*(call.ended for call in calls))
    codes = [call.reply.error.code if call.reply and call.reply.error else "" for call in calls]
    assert codes == ["", "access-denied", "", "access-denied", ""]
    assert [each.token for each in worker.seen] == ["", "", ""]


async def test_a_call_that_is_known_is_not_joined_with_a_token_that_does_not_hold(
    redis_url: str, door: Door
) -> None:
    async with session_of(redis_url) as ours, session_of(redis_url) as theirs:
        first = sent(ours, echo(VIC, "x"), "k")
        await first.accepted
        forged = msgspec.structs.replace(echo(VIC, "x"), token=new_token())
        assert isinstance(await refused(sent(theirs, forged, "k").taken()), AccessDenied)
        again = msgspec.structs.replace(echo(VIC, "x"), token=await door.token())
        await sent(theirs, again, "k").taken()


async def test_a_registration_sent_again_is_the_same_unless_its_token_is_another(
    redis_url: str,
) -> None:
    body = AccessRegister("bob", token=new_token())
    asked = Syscall(new_id(), "vic", body, tenant="acme")
    async with session_of(redis_url) as ours, session_of(redis_url) as theirs:
        await sent(ours, asked, "k").accepted
        later = msgspec.structs.replace(asked, deadline_s=5.0)
        await sent(theirs, later, "k").taken()
        other = msgspec.structs.replace(asked, body=AccessRegister("bob", token=new_token()))
        assert isinstance(await refused(sent(ours, other, "k").taken()), KeyConflict)


# What is in the database: effects and notes.


async def test_the_effect_of_an_id_is_its_agents(scene: StateScene) -> None:
    same = new_id()
    first = await scene.ask("vic", MemoryAdd("the victim's"), id=same)
    other = await scene.ask("mal", MemoryAdd("mallory's"), id=same)
    assert isinstance(first, Note)
    assert (other.content, other.owner) == ("mallory's", "mal")
    assert other.id != first.id
    assert (await scene.ask("vic", MemoryAdd("the victim's"), id=same)) == first


async def test_who_uses_an_id_first_does_not_make_the_owners_call_fail(scene: StateScene) -> None:
    same = new_id()
    await scene.ask("mal", StorageWrite("report.md", "mallory's"), id=same)
    written = await scene.ask("vic", StorageWrite("report.md", "the victim's"), id=same)
    assert written.owner == "vic"


async def test_who_is_asked_about_an_id_first_does_not_keep_the_owner_from_asking(
    scene: StateScene,
) -> None:
    same = new_id()
    for agent in ("mal", "vic"):
        await scene.ask(agent, MemoryAdd("x"))
        with pytest.raises(NeedsApproval):
            await scene.ask(agent, MemoryClear(), id=same)
    assert {row.name for row in await scene.rows(WAITING, same)} == {"mal", "vic"}
