"""The function library: the Lua files of `lua/`, loaded into Redis as one library."""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files

import hiredis

from aios_broker.contract.cores import queue_of
from aios_broker.contract.errors import InvalidConfig, KernelError, RedisUnavailable
from aios_broker.contract.names import Module
from aios_broker.queues import rows
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Answer, Argument, Connection

NOT_ALLOWED = "NOPERM"  # how a server's refusal of a user begins
LIBRARY = "aios9"  # the number changes with the arguments: old and new workers call their own
# By who calls them, in the order in which they lean on each other.
STEPS = (
    "shared/lib",
    "shared/ended",
    "shared/failures",
    "shared/money",
    "shared/quota",
    "shared/rates",
    "shared/routes",
    "shared/admission",
    "client/submit",
    "worker/claim",
    "worker/vouch",
    "worker/finish",
    "worker/needs",
    "worker/suspend",
    "worker/slice",
    "worker/renew",
    "worker/emit",
    "client/attach",
    "operator/cancel",
    "operator/hold",
    "operator/release",
    "operator/unpark",
    "operator/nice",
    "operator/stop",
    "operator/retry",
    "scheduler/lead",
    "scheduler/reorder",
    "scheduler/exchange",
    "scheduler/reclaim",
    "scheduler/expire",
    "scheduler/reconcile",
    "scheduler/mend",
    "scheduler/unlist",
    "scheduler/move",
    "operator/look",
    "scheduler/watch",
    "scheduler/turns",
    "worker/register",
    "worker/unregister",
    "scheduler/spill",
    "worker/context",
    "client/responses",
)
LEANT_ON = frozenset(
    {
        "client/submit",
        "worker/claim",
        "client/attach",
        "scheduler/reconcile",
        "operator/look",
    }
)


@cache
def library_source() -> str:
    """Return the Lua source of the library: rows and the shared part first, then the steps."""
    folder = files("aios_broker.queues") / "lua"
    parts = [f"#!lua name={LIBRARY}\n", rows.lua_source()]
    parts += [_in_its_own_block(name, (folder / f"{name}.lua").read_text()) for name in STEPS]
    return "\n".join(parts)


def _in_its_own_block(name: str, source: str) -> str:
    """Return a step whose local names nobody else uses; Lua has room for 200 in one block."""
    is_leant_on = name.startswith("shared/") or name in LEANT_ON
    return source if is_leant_on else f"do\n{source}\nend"


class Functions:
    """Calls our functions; loads the library when Redis does not have it (a fresh server)."""

    def __init__(
        self,
        connection: Connection,
        library: str = LIBRARY,
        source: Callable[[], str] = library_source,
    ) -> None:
        self.connection = connection
        self._library = library
        self._source = source
        self._slot_keys: dict[str, str] = {}  # by the prefixes that this Redis can serve

    async def call(self, step: str, keys: Keys, arguments: Sequence[Argument]) -> Answer:
        """Run one step on the keys of a deployment.

        Raises:
            InvalidConfig: a cluster, and a prefix without a hash tag.
            KernelError: Redis refused it.
        """
        slot_key = self._slot_keys.get(keys.prefix) or await self._place(keys)
        command = ("FCALL", f"{self._library}_{step}", 1, slot_key, keys.prefix, *arguments)
        try:
            return await self.connection.execute(*command)
        except hiredis.ReplyError as error:
            if "Function not found" not in str(error):
                raise _refused(step, error) from error
        await self.load()
        try:
            return await self.connection.execute(*command)
        except hiredis.ReplyError as error:
            raise _refused(step, error) from error

    async def _place(self, keys: Keys) -> str:
        """Return the key that every step names, of a prefix that this Redis can serve."""
        if not keys.hash_tag and await self.connection.in_cluster():
            raise InvalidConfig(
                f"the prefix {keys.prefix!r} has no hash tag, and this Redis is a cluster: "
                "its keys would lie on different nodes",
                field="RQ_KEY_PREFIX",
                remedy="put the part that names the shard in braces, such as {shard1}:rq",
            )
        slot_key = self._slot_keys[keys.prefix] = keys.slot_key
        return slot_key

    async def load(self) -> None:
        """Load the library, replacing what is there under the same name.

        Raises:
            RedisUnavailable: this process's user may not; a scheduler will.
            KernelError: Redis refuses it: it is too old.
        """
        try:
            await self.connection.execute("FUNCTION", "LOAD", "REPLACE", self._source())
        except hiredis.ReplyError as error:
            if str(error).startswith(NOT_ALLOWED):
                raise RedisUnavailable(
                    "Redis has not the kernel's functions yet, and this user may not load them",
                    remedy="start a scheduler of this version: it does",
                    retry_after_s=1.0,
                ) from error
            raise KernelError(
                f"Redis refused the kernel's functions: {error}",
                remedy="use Valkey, or Redis 7 or newer",
            ) from error


def _refused(step: str, error: hiredis.ReplyError) -> KernelError:
    """Return the error of a step that Redis did not take."""
    denied = str(error).startswith(NOT_ALLOWED) or "ACL failure in script" in str(error)
    return KernelError(
        f"Redis refused {step}: {error}",
        remedy="this process's user in Redis may not do that" if denied else None,
    )


class Steps:
    """What takes steps on the keys of one deployment."""

    def __init__(self, functions: Functions, keys: Keys | None = None) -> None:
        self.keys = keys or Keys()
        self.functions = functions

    async def _call(self, step: str, module: Module, arguments: Sequence[Argument]) -> Answer:
        return await self.functions.call(step, self.keys, [module, *arguments])

    async def _execute(self, *command: Argument) -> Answer:
        return await self.functions.connection.execute(*command)


class ModuleSteps:
    """What takes steps on a module. `queue`: the run queue that a step about a list means."""

    def __init__(
        self, functions: Functions, module: Module, keys: Keys | None = None, *, core: str = ""
    ) -> None:
        self.module = module
        self.queue = queue_of(module, core)
        self.keys = keys or Keys()
        self.functions = functions

    async def _call(self, step: str, arguments: Sequence[Argument]) -> Answer:
        return await self.functions.call(step, self.keys, [self.queue, *arguments])

    async def _execute(self, *command: Argument) -> Answer:
        return await self.functions.connection.execute(*command)
