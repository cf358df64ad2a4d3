"""Redis' users where the server is somebody else's: made at the start, and again when it lost them.

    python -m aios_local.supervisor.redis_users    makes them at the server of AIOS_REDIS_URL

Users are a server's own: they are in no append-only file and go to no replica. So each server that
the address names has them, and each node of a cluster; a server with an `aclfile` keeps them.
"""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Sequence

import hiredis

from aios_broker.config import KernelConfig, environment
from aios_broker.contract.errors import InvalidConfig, KernelError, RedisUnavailable
from aios_broker.queues.functions import NOT_ALLOWED
from aios_broker.queues.keys import Keys
from aios_broker.queues.users import ROLES, acl_rules, secret_of, user_name
from aios_broker.redis.address import Address, parse_url
from aios_broker.redis.wire import FAILURES, Wire, dial

LOOK_EVERY_S = 1.0  # a server that was restarted knows nobody until then
ANSWER_TIMEOUT_S = 5.0
EXIT_SETTINGS = 2
NAME = "aios-users"


class RedisUsers:
    """Makes the users of one deployment, by the login that may do everything."""

    def __init__(self, url: str, keys: Keys) -> None:
        secret = secret_of(url)
        assert secret is not None, "without a password there are no users"
        self._addresses = parse_url(url)
        self._names = [user_name(role, keys) for role in ROLES]
        self._rules = [acl_rules(role, secret, keys) for role in ROLES]

    async def make(self) -> None:
        """Make them, or make them what they are to be, on each server that answers.

        Raises:
            InvalidConfig: the login may not.
            RedisUnavailable: no server answers.
        """
        outcomes = await self._on_all(only_missing=False)
        denied = [one for one in outcomes if isinstance(one, hiredis.ReplyError)]
        if denied:
            raise _not_made(denied[0])
        if all(isinstance(one, BaseException) for one in outcomes):
            raise RedisUnavailable(
                f"no Redis that users can be made on: {outcomes[0]}",
                field="AIOS_REDIS_URL",
                remedy="start it, or correct the URL",
                retry_after_s=1.0,
            )

    async def make_missing(self) -> int:
        """Make them where a server that answers has none; return on how many."""
        outcomes = await self._on_all(only_missing=True)
        return sum(1 for one in outcomes if one is True)

    async def _on_all(self, *, only_missing: bool) -> Sequence[bool | BaseException]:
        """Return, of each server, whether they were made there, or why not."""
        tries = [self._on_one(at, only_missing=only_missing) for at in await self._servers()]
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        for one in outcomes:
            if isinstance(one, BaseException) and not isinstance(one, FAILURES):
                raise one
        return outcomes

    async def _servers(self) -> list[Address]:
        """Return those that the address names and, of a cluster, all nodes that they know of."""
        found = {str(at): at for at in self._addresses}
        for at in self._addresses:
            with contextlib.suppress(*FAILURES):
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    for node in await _neighbours(at):
                        found.setdefault(str(node), node)
                    break  # what one node knows, all know
        return list(found.values())

    async def _on_one(self, at: Address, *, only_missing: bool) -> bool:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            wire = await dial(at, NAME)
            try:
                if only_missing and await self._has_all(wire):
                    return False
                for name, rules in zip(self._names, self._rules, strict=True):
                    await wire.send(("ACL", "SETUSER", name, *rules))
                with contextlib.suppress(hiredis.ReplyError):  # it has no file for them
                    await wire.send(("ACL", "SAVE"))
            finally:
                wire.close()
        return True

    async def _has_all(self, wire: Wire) -> bool:
        there = {name.decode() for name in await wire.send(("ACL", "USERS"))}
        return there.issuperset(self._names)


class UsersWatch:
    """A thread that looks, for as long as the block lasts, whether a server has lost its users."""

    def __init__(self, users: RedisUsers) -> None:
        self._users = users
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="redis-users", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            asyncio.run(self._users.make_missing())


async def _neighbours(at: Address) -> list[Address]:
    wire = await dial(at, NAME)
    try:
        if not wire.clustered:
            return []
        lines = (await wire.send(("CLUSTER", "NODES"))).decode().splitlines()
    finally:
        wire.close()
    places = [line.split(" ")[1].partition("@")[0] for line in lines if "noaddr" not in line]
    return [at.neighbour(place) for place in places]


def _not_made(error: hiredis.ReplyError) -> InvalidConfig:
    known = str(error).startswith((NOT_ALLOWED, "WRONGPASS", "NOAUTH"))
    why = "its login may not" if known else "it does not know all that they may do"
    return InvalidConfig(
        f"Redis' users cannot be made there, {why}: {error}",
        field="AIOS_REDIS_URL",
        remedy="name a login that may run ACL SETUSER, or set AIOS_REDIS_USERS=shared: "
        "all processes log in as you do then",
    )


def main() -> int:
    """Make the users once."""
    try:
        config = KernelConfig.from_environment(environment())
        asyncio.run(RedisUsers(str(config.redis_url), Keys(config.key_prefix)).make())
    except InvalidConfig as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_SETTINGS
    except KernelError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
