"""One syscall from the command line: built, sent, waited for, cancelled by Ctrl-C, shown."""

import asyncio
import sys
from collections.abc import Awaitable, Callable

import click
import msgspec

from aios_broker.client.pending import Pending
from aios_broker.contract.errors import Cancelled, from_wire
from aios_broker.contract.reply import Reply
from aios_broker.contract.syscall import Syscall, decode_syscall
from aios_cli.fields import Fields, given
from aios_cli.session import Operator, exit_code_of
from aios_cli.tables import show_json


def checked(fields: Fields) -> Syscall:
    """Return the syscall of these fields; those that are not given have the contract's defaults.

    Raises:
        InvalidSyscall: a value out of its range; `field` names it.
        UnknownModule: a tool that is not built.
    """
    return decode_syscall(msgspec.json.encode(given(fields)))


def text_or_stdin(text: str) -> str:
    """Return a text; `-` reads it from standard input."""
    return sys.stdin.read() if text == "-" else text


async def ask(
    operator: Operator, syscall: Syscall, hear: Callable[[Pending], Awaitable[Reply]]
) -> Reply:
    """Submit and wait as `hear` does; who is interrupted cancels the syscall."""
    async with operator.client() as client:
        try:
            return await hear(client.submit(syscall))
        except asyncio.CancelledError:
            error = Cancelled("its caller went away (Ctrl-C)", syscall_id=syscall.id)
            await operator.control.cancel([syscall.id], error, module=syscall.module)
            click.echo(f"\ncancelled {syscall.id}", err=True)
            raise


def conclude(reply: Reply, show: Callable[[Reply], None], *, as_json: bool) -> None:
    """Show the reply, and end with the exit code of its error."""
    error = None if reply.error is None else from_wire(reply.error)
    if as_json:
        show_json(reply)
        raise SystemExit(exit_code_of(error) if error is not None else 0)
    if error is not None:
        raise error
    show(reply)
