"""A syscall of memory, storage or access from the command line: send it, wait, show the answer."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec

import click
import msgspec

from aios_broker.client.pending import REPLY_GRACE_S
from aios_broker.contract.errors import Cancelled, KernelError, Unavailable, from_wire
from aios_broker.contract.reply import Reply
from aios_broker.contract.syscall import StateBody, Syscall, decode_syscall, new_id
from aios_cli.human import short_id
from aios_cli.operator import Operator
from aios_cli.session import CommandFailed, exit_code_of, with_kernel
from aios_cli.state_results import show_result
from aios_cli.tables import show_json

LOOK_S = 1.0  # between looks at whether it waits for a person
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, and how the answer is shown."""

    agent: str
    program: str
    tenant: str
    deadline_s: float
    as_json: bool


def as_agent(command: Callable[Arguments, StateBody]) -> Callable[..., None]:
    """Make a command of a function that returns the body to send."""

    @click.option("--agent", default="cli", show_default=True, help="As which agent.")
    @click.option("--program", default="main", show_default=True, help="In which of its programs.")
    @click.option("--tenant", default="default", show_default=True, help="Whose agent it is.")
    @click.option(
        "--deadline-s",
        type=float,
        default=600.0,
        show_default=True,
        help="It fails after this long, a person's decision included.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
    @wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        given = {name: kwargs.pop(name) for name in Asker.__dataclass_fields__}
        asker = msgspec.convert(given, Asker)
        try:
            body = command(*args, **kwargs)
            syscall = _checked(body, asker)
        except KernelError as error:
            raise CommandFailed(error, as_json=asker.as_json) from error
        _conclude(with_kernel(lambda kernel: _run(kernel, syscall), as_json=asker.as_json), asker)

    return run


def text_or_stdin(text: str) -> str:
    """Return a text; `-` reads it from standard input."""
    return sys.stdin.read() if text == "-" else text


def _checked(body: StateBody, asker: Asker) -> Syscall:
    return decode_syscall(
        msgspec.json.encode(
            Syscall(
                new_id(),
                asker.agent,
                body,
                program=asker.program,
                tenant=asker.tenant,
                deadline_s=asker.deadline_s,
            )
        )
    )


async def _run(operator: Operator, syscall: Syscall) -> Reply:
    async with operator.client() as client:
        pending = client.submit(syscall)
        telling = asyncio.create_task(_tell_when_parked(operator, syscall.id))
        try:
            return await pending.reply_within(syscall.deadline_s + REPLY_GRACE_S)
        except asyncio.CancelledError:
            cancelled = Cancelled("the command was interrupted", syscall_id=syscall.id)
            await operator.control.cancel([syscall.id], module=syscall.module, error=cancelled)
            raise
        finally:
            telling.cancel()


async def _tell_when_parked(operator: Operator, syscall_id: str) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        with contextlib.suppress(Unavailable):  # it comes back, or the reply says that it did not
            view = await operator.control.job(syscall_id)
            if view is not None and view.state == "parked":
                typed = short_id(syscall_id)
                click.echo(
                    f"{typed} waits for a person: `aios approve {typed}` shows what it would do",
                    err=True,
                )
                return


def _conclude(reply: Reply, asker: Asker) -> None:
    if asker.as_json:
        show_json(reply)
        if reply.error is not None:
            raise SystemExit(exit_code_of(from_wire(reply.error)))
    elif reply.error is not None:
        raise CommandFailed(from_wire(reply.error))
    else:
        assert reply.result is not None
        show_result(reply.result)
