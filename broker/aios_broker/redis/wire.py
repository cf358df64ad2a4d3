"""One socket to one Redis: packs commands, parses replies, keeps them in order.

`seek` finds the server to talk to among those that a URL names: the master, or a cluster's node.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis

from aios_broker.contract.errors import KernelError, RedisFull, RedisUnavailable
from aios_broker.redis.address import Address

# Refusals of a server that starts, fails over, cannot write, or is held up by another's script.
NOT_NOW = (
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "READONLY",
    "BUSY ",
    "UNBLOCKED",
    "MISCONF",
    "NOREPLICAS",
)
# Those of a server that is not, or not any more, the one to talk to.
NOT_HERE = ("READONLY", "MASTERDOWN", "CLUSTERDOWN", "UNBLOCKED")
# A slot of a cluster is on its way to another node, key by key. To follow would mean to work on
# half of the shard: our steps touch more keys than they name (docs/decisions/0008).
MOVING = ("ASK ",)
FULL = ("OOM ",)

Argument = bytes | str | int | float
Answer = Any  # what hiredis parses: bytes, int, None, or lists of them


class Moved(Exception):
    """A cluster's answer: these keys are served by another node."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


class NotHere(ConnectionAbortedError):
    """This server is not, or not any more, the one to talk to."""


class Wire(asyncio.Protocol):
    """One TCP or unix connection."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.role = ""  # master, replica, or not known
        self.clustered = False
        self.lost: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=hiredis.ReplyError)
        self._waiting: deque[asyncio.Future[Answer]] = deque()
        self._outgoing: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._overheard: Callable[[Answer], None] | None = None
        self._retired = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: asyncio says so."""
        # Not asserted: the transports of uvloop are no subclasses of it.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits."""
        self.lost = self.lost or exc or ConnectionResetError("the server closed the connection")
        self._outgoing.clear()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(broken(self.lost))
        if self._overheard is not None:
            self._overheard(None)

    def data_received(self, data: bytes) -> None:
        """Hand the replies in these bytes to whom they are for."""
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not False:
                self._settle(answer)
        except hiredis.ProtocolError as error:
            self.lost = self.lost or ConnectionAbortedError(f"what answers is no Redis: {error}")
            self.close()
        if self._retired and not self._waiting:
            self.close()

    def _settle(self, answer: Answer) -> None:
        if not self._waiting:
            if self._overheard is not None:
                self._overheard(answer)
            return
        future = self._waiting.popleft()
        error = self._refusal(answer) if isinstance(answer, hiredis.ReplyError) else None
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(answer)

    def _refusal(self, answer: hiredis.ReplyError) -> Exception:
        """Return the error for a refusal; one that passes by itself is no fault of the command."""
        text = str(answer)
        if text.startswith("MOVED "):
            return Moved(text.split(" ")[2])
        if text.startswith(NOT_HERE):
            self.retire(NotHere(text))
        if text.startswith((*NOT_NOW, *MOVING)):
            return _not_now(text)
        return full(text) if text.startswith(FULL) else answer

    def send(self, arguments: Sequence[Argument]) -> asyncio.Future[Answer]:
        """Queue a command; it leaves with all others of this loop tick."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        if self.lost is not None:
            future.set_exception(broken(self.lost))
            return future
        self._queue(arguments)
        self._waiting.append(future)
        return future

    def overhear(self, listener: Callable[[Answer], None]) -> None:
        """Hand over what comes without a command (pub/sub), and None when the connection ends."""
        self._overheard = listener

    def say(self, arguments: Sequence[Argument]) -> None:
        """Send a command whose answer is overheard, as those of a subscribed wire are."""
        if self.lost is not None:
            raise broken(self.lost)
        self._queue(arguments)

    def _queue(self, arguments: Sequence[Argument]) -> None:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        packed = hiredis.pack_command(tuple(arguments))  # type: ignore[arg-type]
        self._outgoing.append(packed)

    def _flush(self) -> None:
        if self._outgoing and self._transport is not None and self.lost is None:
            self._transport.write(b"".join(self._outgoing))
            self._outgoing.clear()

    def retire(self, why: Exception) -> None:
        """Take no more commands; close when those under way have their answers."""
        self._flush()
        self._retired = True
        self.lost = self.lost or why
        if not self._waiting:
            self.close()

    def close(self) -> None:
        """Close at once; what waits fails."""
        if self.lost is None:  # the transport says so one turn of the loop later: too late
            self.lost = ConnectionAbortedError("it was given up")
        if self._transport is not None:
            self._transport.abort()


def broken(cause: Exception) -> RedisUnavailable:
    """Return the error of a command that was under way when its connection broke."""
    return RedisUnavailable(
        f"the connection to Redis broke: {cause}",
        remedy="it may or may not have run; send it again with the same id",
    )


def _not_now(text: str) -> KernelError:
    return RedisUnavailable(
        f"Redis cannot serve now: {text}",
        remedy="nothing was changed; send it again",
        retry_after_s=1.0,
    )


def full(text: str) -> KernelError:
    """Return the error of a Redis that has used up its memory."""
    return RedisFull(
        f"Redis has used up its memory: {text}",
        remedy="nothing was changed; send it again when jobs have ended, or raise its maxmemory",
        retry_after_s=1.0,
    )


async def dial(at: Address, name: str) -> Wire:
    """Connect and introduce ourselves.

    Raises:
        OSError: nobody is there.
        hiredis.ReplyError: a wrong password, a database that is not there.
        RedisUnavailable: it broke off while we did.
    """
    loop = asyncio.get_running_loop()

    def wire() -> Wire:
        return Wire(at)

    if at.path:
        _, made = await loop.create_unix_connection(wire, at.path)
    else:
        _, made = await loop.create_connection(wire, at.host, at.port, ssl=at.tls or None)
    try:
        await _greet(made, name)
    except BaseException:  # cancelled, too: nobody else knows of this connection
        made.close()
        raise
    return made


async def _greet(wire: Wire, name: str) -> None:
    at = wire.address
    if at.password:
        credentials = (at.username, at.password) if at.username else (at.password,)
        await wire.send(("AUTH", *credentials))
    if at.db:
        await wire.send(("SELECT", at.db))
    try:
        answer = await wire.send(("HELLO", 2, "SETNAME", name))
    except hiredis.ReplyError as error:
        if str(error).startswith("NOAUTH"):  # it wants a password, and the URL has none
            raise
        return  # a user that may not ask: then we are told what it is by its refusals
    if isinstance(answer, list):
        facts = dict(zip(answer[::2], answer[1::2], strict=True))
        wire.role = facts.get(b"role", b"").decode()
        wire.clustered = facts.get(b"mode") == b"cluster"


SECOND_MASTER_S = 0.25  # how long the others are waited for when one says that it is the master
FAILURES = (OSError, TimeoutError, hiredis.ReplyError, RedisUnavailable)


async def seek(addresses: Sequence[Address], name: str) -> Wire:
    """Connect to the one master, or to whichever node of a cluster answers first.

    Which one is the master is asked each time: after a failover it is another.

    Raises:
        ConnectionError: there is none, or more than one (then nothing is guessed).
        OSError, hiredis.ReplyError, RedisUnavailable: of the only server.
    """
    if len(addresses) == 1:
        wire = await dial(addresses[0], name)
        if wire.role == "replica" and not wire.clustered:
            wire.close()
            raise ConnectionError("it is a replica: name its master, too")
        return wire
    tries = {asyncio.create_task(dial(at, name)): at for at in addresses}
    chosen: Wire | None = None
    try:
        chosen = await _one_master(tries)
        return chosen
    finally:
        for task in tries:
            task.cancel()
        for outcome in await asyncio.gather(*tries, return_exceptions=True):
            if isinstance(outcome, Wire) and outcome is not chosen:
                outcome.close()


async def _one_master(tries: dict[asyncio.Task[Wire], Address]) -> Wire:
    masters: list[Wire] = []
    others: list[str] = []
    pending = set(tries)
    while pending:
        done, pending = await asyncio.wait(
            pending,
            return_when=asyncio.FIRST_COMPLETED,
            timeout=SECOND_MASTER_S if masters else None,
        )
        if not done:
            break  # those that are silent are no masters
        for task in done:
            if error := task.exception():
                others.append(f"{tries[task]}: {_reason(error)}")
            elif (wire := task.result()).clustered:
                return wire
            elif wire.role == "replica":
                others.append(f"{tries[task]} is a replica")
            else:
                masters.append(wire)
    if len(masters) == 1:
        return masters[0]
    if masters:
        names = " and ".join(str(wire.address) for wire in masters)
        raise ConnectionError(f"{names} each say that they are master: demote all but one")
    raise ConnectionError("; ".join(others))


def _reason(error: BaseException) -> str:
    """Say why a server could not be reached; raise what is no such error."""
    if not isinstance(error, FAILURES):
        raise error
    return str(error) or "no answer"
