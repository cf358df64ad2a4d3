"""`aios policy`: show or change who goes first, while the kernel runs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.queues.records import PolicyRow
from aios_broker.scheduler.policy import policy_named
from aios_cli.call import given
from aios_cli.lookup import ModuleName
from aios_cli.session import Operator, command
from aios_cli.tables import Column, Listing

YIELDS_TO = {"none": "nobody", "waiting": "whoever waits", "score": "lower scores"}


def _quantum(row: PolicyRow) -> str:
    return "-" if row.preempt == "none" else f"{row.quantum_s:g} s or {row.quantum_tokens} tokens"


POLICIES = Listing[tuple[Module, PolicyRow]](
    (Column("Module"), lambda one: one[0]),
    (Column("Policy"), lambda one: one[1].name),
    (Column("Yields to"), lambda one: YIELDS_TO[one[1].preempt]),
    (Column("Quantum"), lambda one: _quantum(one[1])),
    (Column("Max waiting", "right"), lambda one: one[1].max_waiting),
    (Column("Max losses", "right"), lambda one: one[1].max_losses),
)


def _show(rows: Mapping[Module, PolicyRow]) -> None:
    POLICIES.show(list(rows.items()))


@command(_show)
@click.argument("name", required=False)
@click.option("--module", type=ModuleName(), help="Of this module alone; without it, of all.")
@click.option(
    "--quantum-s", type=click.FloatRange(min=0.001), help="A slice ends after so many seconds ..."
)
@click.option("--quantum-tokens", type=click.IntRange(min=1), help="... or so many output tokens.")
async def policy(
    operator: Operator, name: str | None, module: Module | None, **quanta: float | None
) -> dict[Module, PolicyRow]:
    """Show the scheduling policy, or change it: to NAME, or its quanta.

    \b
    fifo      first come, first served, to the end
    rr        everybody in turn, a slice each
    priority  the lowest nice value first; a second of waiting weighs as much as one nice level

    \b
    Example:
      aios policy priority --module llm --quantum-s 0.25
    """  # noqa: D301 - \b keeps click from wrapping
    changes: dict[str, Any] = given(quanta)
    if name is not None:
        chosen = policy_named(name, field="NAME")
        changes |= {"name": chosen.name, "preempt": chosen.preempt}
    rows = {}
    for one in (module,) if module else MODULES:
        before = await operator.control.policy(one)
        rows[one] = replace(before, **changes)
        if rows[one] != before:
            await operator.control.set_policy(one, rows[one])
    return rows
