"""RQ's commands: what its tools, and our cancel function, publish to a worker."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
from msgspec import Struct
from redis import RedisError
from redis.asyncio import Redis

from aios_workers.patience import Backoff

logger = logging.getLogger(__name__)

HEALTH_CHECK_S = 10.0  # a connection that died in silence is noticed after this time


class Command(Struct, frozen=True, rename={"name": "command"}):
    """One command: shutdown, stop-job, stop-execution or kill-horse."""

    name: str
    job_id: str = ""


class CommandChannel:
    """One worker's pub/sub channel. Commands of a time without connection are lost.

    They are an optimisation, the lease is what decides: a job that was cancelled is noticed
    at its next renewal in any case.
    """

    def __init__(self, url: str, channel: str) -> None:
        self._url = url
        self._channel = channel

    async def listen(self, obey: Callable[[Command], None]) -> None:
        """Hand over each command, until cancelled."""
        backoff = Backoff()
        while True:
            try:
                await self._subscribed(obey, backoff)
            except (RedisError, OSError) as error:
                if backoff.calm:
                    logger.warning("no commands reach this worker: %s", error)
            await backoff.wait()

    async def _subscribed(self, obey: Callable[[Command], None], backoff: Backoff) -> None:
        client = Redis.from_url(
            self._url, socket_timeout=None, health_check_interval=HEALTH_CHECK_S
        )
        async with client, client.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(self._channel)
            backoff.reset()
            while True:  # each turn also checks that the connection lives
                message = await channel.get_message(timeout=HEALTH_CHECK_S)
                command = read_command(message["data"]) if message else None
                if command is not None:
                    obey(command)


def read_command(data: bytes) -> Command | None:
    """Read a command; None for what is none (anybody may publish)."""
    try:
        return msgspec.json.decode(data, type=Command)
    except (msgspec.DecodeError, UnicodeDecodeError):
        logger.warning("not a command: %.100r", data)
        return None
