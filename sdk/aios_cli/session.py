"""One command's talk with the kernel: find it, connect, ask, close; show the answer.

    @command(QUEUES.show)
    async def queues(operator: Operator) -> list[QueueView]:
        ...

Exit codes go by kind of error.
"""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Self, TypeVar

import click
import hiredis
import msgspec

from aios_broker.client.redis_transport import RedisTransport
from aios_broker.client.session import Session
from aios_broker.config import KernelConfig, environment
from aios_broker.contract.errors import (
    InvalidConfig,
    KernelError,
    Rejected,
    Unavailable,
    WaitTimeout,
)
from aios_broker.contract.syscall import Syscall
from aios_broker.queues.control import Control
from aios_broker.queues.fleet import Fleet
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import ModuleQueue
from aios_broker.queues.quota import Quotas
from aios_broker.queues.rate_limits import Rates
from aios_broker.queues.secret import KernelSecret
from aios_broker.redis.connection import Connection
from aios_cli.error_words import spoken
from aios_cli.tables import say, show_json
from aios_local.supervisor.record import KernelRecord
from aios_local.supervisor.record import find_kernel as find_kernel_of

EXIT_FAILED = 1  # it was accepted, and did not succeed
EXIT_USAGE = 2  # click's own, for options and arguments that it does not know
EXIT_UNAVAILABLE = 3
EXIT_REJECTED = 4
EXIT_TIMEOUT = 5
EXIT_CUT = 6  # an answer of a promised form ran out of tokens before its end
EXIT_INTERRUPTED = 130
EXIT_CODE_OF: dict[type[KernelError], int] = {
    Unavailable: EXIT_UNAVAILABLE,
    Rejected: EXIT_REJECTED,
    WaitTimeout: EXIT_TIMEOUT,
    InvalidConfig: EXIT_USAGE,
}

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or setting, 3 the kernel does not answer, "
    "4 refused (unknown id, module, core; value out of range; too long; queue full), "
    "5 no reply in time, 6 cut before the end of its form, 130 interrupted."
)

NAME = "aios-cli"  # what CLIENT LIST shows
Result = TypeVar("Result")


class CommandFailed(click.ClickException):
    """A KernelError as a command ends with it: its text on standard error, its exit code."""

    def __init__(
        self, error: KernelError, command: click.Command, path: str, *, as_json: bool = False
    ) -> None:
        """Take the error, and the command that ends with it, as it was typed: `aios files ls`."""
        super().__init__(spoken(error, command, path))
        self.error = error
        self.exit_code: int = exit_code_of(error)  # type: ignore[misc]
        self._as_json = as_json

    def show(self, file: object = None) -> None:
        """Print the error: as JSON on standard output, else in words on standard error."""
        if self._as_json:
            show_json({"error": self.error.to_wire()})
        else:
            say(f"{self.error.code}: {self.message}", err=True)


class Interrupted(SystemExit):
    """Ctrl-C, with the exit code that shells give it."""

    def __init__(self) -> None:
        super().__init__(EXIT_INTERRUPTED)


def exit_code_of(error: KernelError) -> int:
    """Return the exit code that a command ends with on this error."""
    codes = (code for kind, code in EXIT_CODE_OF.items() if isinstance(error, kind))
    return next(codes, EXIT_FAILED)


def current_config() -> KernelConfig:
    """Return what the `aios` group has read, else what the environment says.

    Raises:
        InvalidConfig: The environment holds a bad or unknown setting.
    """
    context = click.get_current_context(silent=True)
    found = context.find_object(KernelConfig) if context is not None else None
    return found or KernelConfig.from_environment(environment())


def find_kernel() -> KernelRecord:
    """Return the running kernel that this command is meant for.

    Raises:
        KernelNotRunning: There is none.
    """
    return find_kernel_of(current_config())


def database_url() -> str:
    """Return the address of the kernel's database.

    Raises:
        InvalidConfig: the kernel keeps none.
    """
    url = current_config().database_url or find_kernel().database_url
    if url is None:
        raise InvalidConfig(
            "is not set, and the kernel keeps no database",
            field="AIOS_DATABASE_URL",
            remedy="set it",
        )
    return url


class Operator:
    """An async context manager, for one event loop. It connects when it is first used."""

    def __init__(self, redis_url: str, *, keys: Keys | None = None, name: str = NAME) -> None:
        self.keys = keys or Keys()
        self.connection = Connection(redis_url, name=name)
        self._name = name
        self._functions = Functions(self.connection)
        self.control = Control(self._functions, self.keys)
        self.fleet = Fleet(self.connection, self.keys)
        self.quotas = Quotas(self._functions, self.keys)
        self.rates = Rates(self._functions, self.keys)
        self._secret = KernelSecret(self.connection, self.keys)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.connection.aclose()

    async def identified(self, syscall: Syscall, key: str | None = None) -> Syscall:
        """Return a syscall with an id that its agent may use: a fresh one, or the one of a key."""
        ids = (await self._secret.id_maker()).of(syscall.owner)
        syscall_id = ids.fresh() if key is None else ids.from_key(key)
        return msgspec.structs.replace(syscall, id=syscall_id)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Session]:
        """Open a client of the same kernel beside it, for what submits syscalls or attaches."""
        transport = RedisTransport(self.connection.url, self._name, self.keys)
        async with Session(transport) as session:
            yield session

    async def peek(self, syscall_id: str) -> tuple[str, bytes | None]:
        """Return a syscall's state and, if it ended, its encoded reply; nobody waits for it.

        The state is `unknown` where nothing is left of it.
        """
        queue = ModuleQueue(self._functions, "llm", self.keys)
        return await queue.attach(syscall_id, "", None)  # what ended is in no module's queue


def with_kernel(work: Callable[[Operator], Awaitable[Result]]) -> Result:
    """Run `work` as an operator of the running kernel.

    Raises:
        KernelError: also where none runs.
        Interrupted: Ctrl-C; `work` was cancelled and has cleaned up.
    """
    keys = Keys(current_config().key_prefix)

    async def connected() -> Result:
        async with Operator(find_kernel().redis_url, keys=keys) as operator:
            return await work(operator)

    try:
        return asyncio.run(connected())
    except hiredis.ReplyError as error:
        raise KernelError(
            f"Redis refused a command: {error}",
            field="AIOS_REDIS_URL",
            remedy="see what its user may do",
        ) from error
    except KeyboardInterrupt:
        raise Interrupted from None


def command(
    show: Callable[[Result], object],
    *,
    name: str | None = None,
    failed: Callable[[Result], bool] = lambda _: False,
) -> Callable[[Callable[..., Result | Awaitable[Result]]], click.Command]:
    """Make a command of a function that returns a value; it is printed as JSON where --json asks.

    A coroutine function is given the running kernel, as an `Operator`, before its parameters.

    Args:
        show: Prints the value for a person.
        name: The command's name; None: that of the function.
        failed: Tells of a value whether the command ends with exit code 1.
    """

    def command_of(run: Callable[..., Result | Awaitable[Result]]) -> click.Command:
        @functools.wraps(run)  # the parameters that were declared on it, too
        def invoke(*, as_json: bool, **given: object) -> None:
            value: Result
            if inspect.iscoroutinefunction(run):
                value = with_kernel(lambda operator: run(operator, **given))
            else:
                value = run(**given)  # type: ignore[assignment]
            (show_json if as_json else show)(value)
            if failed(value):
                raise SystemExit(EXIT_FAILED)

        made = click.command(name, epilog=EXIT_CODES)(invoke)
        made.params.append(click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."))
        return made

    return command_of
