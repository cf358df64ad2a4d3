"""One pub/sub channel, heard on a connection of its own whose silence is looked into."""

import asyncio
from types import TracebackType
from typing import Self

from aios_broker.contract.errors import RedisUnavailable
from aios_broker.contract.urls import without_password
from aios_broker.redis.address import parse_url
from aios_broker.redis.wire import FAILURES, Answer, Wire, broken, seek

OPEN_S = 5.0  # to connect and subscribe
SILENCE_S = 5.0  # after which a ping is sent ...
ANSWER_S = 5.0  # ... and after which, unanswered, the connection counts as dead


class Channel:
    """A context manager that subscribes. What is published while it is not open is not heard.

    Of a cluster any node will do: they pass on what is published.
    """

    def __init__(
        self, url: str, channel: str, *, name: str = "aios-channel", silence_s: float = SILENCE_S
    ) -> None:
        self._url = url
        self._channel = channel
        self._name = name
        self._silence_s = silence_s
        self._heard: asyncio.Queue[Answer] = asyncio.Queue()
        self._wire: Wire | None = None

    async def __aenter__(self) -> Self:
        """Connect and subscribe.

        Raises:
            RedisUnavailable: nobody is there, or it does not answer.
        """
        try:
            async with asyncio.timeout(OPEN_S):
                self._wire = await seek(parse_url(self._url), self._name)
                self._wire.overhear(self._heard.put_nowait)
                self._wire.say(("SUBSCRIBE", self._channel))
                await self._heard.get()
        except FAILURES as error:
            self._close()
            raise RedisUnavailable(
                f"no Redis at {without_password(self._url)}: {str(error) or 'no answer in time'}",
                field="AIOS_REDIS_URL",
                remedy="start it, or correct the URL",
                retry_after_s=1.0,
            ) from error
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    async def next(self) -> bytes:
        """Return the next message.

        Raises:
            RedisUnavailable: the connection broke, or is half dead: not even a ping is answered.
        """
        pinged = False
        while True:
            assert self._wire is not None
            limit_s = ANSWER_S if pinged else self._silence_s
            try:
                async with asyncio.timeout(limit_s):
                    answer = await self._heard.get()
            except TimeoutError:
                if pinged:
                    raise broken(TimeoutError("it does not answer a ping")) from None
                pinged = True
                self._wire.say(("PING",))  # raises where the connection has ended
                continue
            if answer is None:
                raise broken(self._wire.lost or ConnectionResetError("it ended"))
            pinged = False
            if isinstance(answer, list) and answer[0] == b"message":
                message: bytes = answer[2]
                return message

    def _close(self) -> None:
        if self._wire is not None:
            self._wire.close()
