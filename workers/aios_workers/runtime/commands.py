"""RQ's commands: what its tools, and our cancel function, publish to a worker."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import RedisUnavailable
from aios_broker.redis.channel import Channel
from aios_broker.retry import Backoff

logger = logging.getLogger(__name__)


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
                async with Channel(self._url, self._channel) as channel:
                    backoff.reset()
                    await _hand_over(channel, obey)
            except RedisUnavailable as error:
                if backoff.calm:
                    logger.warning("no commands reach this worker: %s", error)
            await backoff.wait()


async def _hand_over(channel: Channel, obey: Callable[[Command], None]) -> None:
    while True:
        command = read_command(await channel.next())
        if command is not None:
            obey(command)


def read_command(data: bytes) -> Command | None:
    """Read a command; None for what is none (anybody may publish)."""
    try:
        return msgspec.json.decode(data, type=Command)
    except (msgspec.DecodeError, UnicodeDecodeError):
        logger.warning("not a command: %.100r", data)
        return None
