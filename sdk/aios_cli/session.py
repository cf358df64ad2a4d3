"""One command's talk with the kernel: find it, connect, run, close; exit codes by kind of error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
import hiredis
import msgspec

from aios_broker.contract.errors import (
    InvalidConfig,
    KernelError,
    Rejected,
    Unavailable,
    WaitTimeout,
)
from aios_broker.queues.keys import Keys
from aios_cli.operator import Operator
from aios_cli.settings import current_config
from aios_local.supervisor.record import find_kernel

EXIT_FAILED = 1  # it was accepted, and did not succeed
EXIT_USAGE = 2  # click's own, for options and arguments that it does not know
EXIT_UNAVAILABLE = 3
EXIT_REJECTED = 4
EXIT_TIMEOUT = 5
EXIT_INTERRUPTED = 130

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or setting, 3 the kernel does not answer, "
    "4 refused (unknown id, module, core; value out of range; too long; queue full), "
    "5 no reply in time, 130 interrupted."
)

Result = TypeVar("Result")


class CommandFailed(click.ClickException):
    """A KernelError as a command ends with it: its text on standard error, its exit code."""

    def __init__(self, error: KernelError, *, as_json: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.exit_code: int = exit_code_of(error)  # type: ignore[misc]
        self._as_json = as_json

    def show(self, file: object = None) -> None:
        """Print the error: as JSON on standard output, else in words on standard error."""
        if self._as_json:
            body = {"error": msgspec.to_builtins(self.error.to_wire())}
            click.echo(msgspec.json.format(msgspec.json.encode(body), indent=2).decode())
        else:
            click.echo(f"{self.error.code}: {self.message}", err=True)


class Interrupted(SystemExit):
    """Ctrl-C, with the exit code that shells give it."""

    def __init__(self) -> None:
        super().__init__(EXIT_INTERRUPTED)


def exit_code_of(error: KernelError) -> int:
    """Return the exit code that a command ends with on this error."""
    if isinstance(error, Unavailable):
        return EXIT_UNAVAILABLE
    if isinstance(error, Rejected):
        return EXIT_REJECTED
    if isinstance(error, WaitTimeout):
        return EXIT_TIMEOUT
    return EXIT_USAGE if isinstance(error, InvalidConfig) else EXIT_FAILED


def with_kernel(work: Callable[[Operator], Awaitable[Result]], *, as_json: bool = False) -> Result:
    """Run `work` as an operator of the running kernel.

    Raises:
        CommandFailed: any KernelError, the kernel not running included.
        Interrupted: Ctrl-C; `work` was cancelled and has cleaned up.
    """
    try:
        config = current_config()
        return asyncio.run(_connected(find_kernel(config).redis_url, Keys(config.key_prefix), work))
    except KernelError as error:
        raise CommandFailed(error, as_json=as_json) from error
    except hiredis.ReplyError as error:
        refused = KernelError(
            f"Redis refused a command: {error}",
            field="AIOS_REDIS_URL",
            remedy="see what its user may do",
        )
        raise CommandFailed(refused, as_json=as_json) from error
    except KeyboardInterrupt:
        raise Interrupted from None


async def _connected(
    redis_url: str, keys: Keys, work: Callable[[Operator], Awaitable[Result]]
) -> Result:
    async with Operator(redis_url, keys=keys) as operator:
        return await work(operator)
