"""`aios policy`: show or change who goes first, while the kernel runs."""

from dataclasses import replace

import click

from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.queues.records import PolicyRow
from aios_broker.scheduler.policy import Policy, policy_named
from aios_cli.lookup import parse_module
from aios_cli.session import EXIT_CODES, Operator, with_kernel
from aios_cli.tables import Column, Listing, show_json

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


@click.command(epilog=EXIT_CODES)
@click.argument("name", required=False)
@click.option("--module", default=None, help="Of this module alone; without it, of all.")
@click.option(
    "--quantum-s", type=click.FloatRange(min=0.001), help="A slice ends after so many seconds ..."
)
@click.option("--quantum-tokens", type=click.IntRange(min=1), help="... or so many output tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def policy(
    name: str | None,
    module: str | None,
    quantum_s: float | None,
    quantum_tokens: int | None,
    *,
    as_json: bool,
) -> None:
    """Show the scheduling policy, or change it: to NAME, or its quanta.

    \b
    fifo      first come, first served, to the end
    rr        everybody in turn, a slice each
    priority  the lowest nice value first; a second of waiting weighs as much as one nice level

    \b
    Example:
      aios policy priority --module llm --quantum-s 0.25
    """  # noqa: D301 - \b keeps click from wrapping
    modules = MODULES if module is None else (parse_module(module),)
    chosen = policy_named(name, field="NAME") if name is not None else None

    async def work(operator: Operator) -> dict[Module, PolicyRow]:
        rows = {}
        for one in modules:
            before = await operator.control.policy(one)
            after = changed(before, chosen, quantum_s, quantum_tokens)
            if after != before:
                await operator.control.set_policy(one, after)
            rows[one] = after
        return rows

    rows = with_kernel(work)
    if as_json:
        show_json(rows)
    else:
        POLICIES.show(list(rows.items()))


def changed(
    row: PolicyRow, policy: Policy | None, quantum_s: float | None, quantum_tokens: int | None
) -> PolicyRow:
    """Return the row with what was asked for; all else stays."""
    if policy is not None:
        row = replace(row, name=policy.name, preempt=policy.preempt)
    if quantum_s is not None:
        row = replace(row, quantum_s=quantum_s)
    return row if quantum_tokens is None else replace(row, quantum_tokens=quantum_tokens)
