"""`aios why`: the rule that keeps a syscall where it is, and the numbers of that rule."""

import contextlib
from collections.abc import Mapping
from typing import Any

import click
import msgspec

from aios_broker.access.requests import find_approvals
from aios_broker.contract.access import Approval
from aios_broker.contract.errors import KernelError
from aios_broker.queues.functions import Functions
from aios_broker.views.why import Ended, explain, explain_ended, surroundings
from aios_broker.views.words import moment, seconds
from aios_cli.approvals import kernel_store
from aios_cli.session import Operator, command
from aios_cli.syscalls import find
from aios_cli.tables import say


def _show(found: Mapping[str, Any]) -> None:
    say(f"{found['job_id']}: {found['rule']}\n{found['text']}")
    if found["remedy"]:
        say(f"Remedy: {found['remedy']}")
    lines = [worded(*number) for number in found["numbers"].items() if number[1] is not None]
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        say(f"  {name.ljust(width)}  {value}")


def worded(name: str, value: float | str) -> tuple[str, str]:
    """Return a number as people read it: its unit stands at the number, not in its name."""
    stem, _, unit = name.rpartition("_")
    words = (stem if unit in ("s", "ms") else name).replace("_", " ")
    if isinstance(value, str) or unit not in ("s", "ms"):
        return words, str(value)
    if stem.endswith("_at"):
        return words, f"{moment(value)} UTC"
    return words, seconds(value / 1000 if unit == "ms" else value)


@command(_show)
@click.argument("syscall_id", metavar="ID")
async def why(operator: Operator, syscall_id: str) -> dict[str, Any]:
    """Say why a syscall waits: which rule keeps it, and the rule's numbers.

    ID may be abbreviated to its first digits, 8 or more. Of one that has ended it says how, for
    as long as the reply is kept (a minute; an hour for one that failed).

    \b
    Examples:
      aios why 3f2a91bc
      aios why 3f2a91bc --json | jq .numbers.waited_s
    """  # noqa: D301 - \b keeps click from wrapping
    found = await find(operator, syscall_id)
    if isinstance(found, Ended):
        explanation = explain_ended(found)
    else:
        approval = await approval_of(found.job_id) if found.state == "parked" else None
        functions = Functions(operator.connection)
        around = await surroundings(functions, operator.keys, found, approval)
        explanation = explain(found, around)
    return {"job_id": found.job_id, **msgspec.to_builtins(explanation)}


async def approval_of(job_id: str) -> Approval | None:
    """Return what a parked syscall waits for; None where no database tells."""
    try:
        async with contextlib.aclosing(kernel_store()) as store, store.as_steward() as cursor:
            found = await find_approvals(cursor, job_id, 1)
    except KernelError:
        return None
    return found[0] if found else None
