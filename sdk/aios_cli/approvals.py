"""`aios approvals`, `approve`, `deny`, `rules`, `audit`: what the operator decides."""

from __future__ import annotations

import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from aios_broker.contract.access import Approval, ApprovalRule, OperationClass
from aios_broker.contract.errors import InvalidConfig, InvalidSyscall, KernelError, NotFound
from aios_broker.contract.syscall import module_of
from aios_broker.postgres.session import Cursor, Store
from aios_cli.lookup import parse_module
from aios_cli.operator import Operator
from aios_cli.session import EXIT_CODES, CommandFailed, with_kernel
from aios_cli.settings import current_config, find_kernel
from aios_cli.state_results import show_approvals, show_audit
from aios_cli.tables import Column, show_json, show_table
from aios_workers.approvals.requests import (
    DEFAULT_RULES,
    Decider,
    Decision,
    arguments_diff,
    decide,
    find_approvals,
    list_approvals,
    set_rule,
)
from aios_workers.modules.access.audit import AuditLine, append_line, newest_lines, verify

MOST = 1_000  # approvals that are listed
FEWEST_DIGITS = 4  # of an id that is abbreviated
EXIT_BROKEN = 1  # the audit log is not what was written

T = TypeVar("T")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def kernel_store() -> Store:
    """Return the database of the running kernel, not connected yet.

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
    return Store(url, name="aios-cli")


def with_store(work: Callable[[Store], Awaitable[T]], *, as_json: bool) -> T:
    """Run work on the database of the running kernel."""

    async def connected() -> T:
        store = kernel_store()
        try:
            return await work(store)
        finally:
            await store.aclose()

    try:
        return asyncio.run(connected())
    except KernelError as error:
        raise CommandFailed(error, as_json=as_json) from error


def as_steward(work: Callable[[Cursor], Awaitable[T]], *, as_json: bool) -> T:
    """Run work in one transaction that sees all agents' rows."""

    async def run(store: Store) -> T:
        async with store.as_steward() as cursor:
            return await work(cursor)

    return with_store(run, as_json=as_json)


@click.command(epilog=EXIT_CODES)
@click.option("--all", "whole", is_flag=True, help="Those that are decided, too.")
@_json
def approvals(*, whole: bool, as_json: bool) -> None:
    """List what waits for a person to allow it, oldest first."""
    found = as_steward(
        lambda cursor: list_approvals(cursor, None if whole else "waiting", MOST), as_json=as_json
    )
    if as_json:
        show_json(found)
    else:
        show_approvals(found)


@click.command(epilog=EXIT_CODES)
@click.argument("approval")
@click.option(
    "--edit",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Run it with these arguments: a JSON file (`-`: standard input).",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_json
def approve(approval: str, edit: str | None, *, yes: bool, as_json: bool) -> None:
    """Let what waits run, once. APPROVAL: its id or its syscall's, which may be abbreviated.

    \b
    Examples:
      aios approve 3f2a91bc
      echo '{"path": "old/a.txt"}' | aios approve 3f2a91bc --edit - --yes
    """  # noqa: D301 - \b keeps click from wrapping
    arguments = None if edit is None else _arguments(edit, as_json=as_json)
    waiting = as_steward(lambda cursor: _find(cursor, approval), as_json=as_json)
    if not yes:
        _show(waiting, arguments)
        click.confirm("Let it run?", abort=True)
    _decide(waiting, Decision("approved", arguments=arguments), as_json=as_json)


@click.command(epilog=EXIT_CODES)
@click.argument("approval")
@click.option("--reason", default="", help="What its caller is told.")
@_json
def deny(approval: str, reason: str, *, as_json: bool) -> None:
    """End what waits: its caller hears `approval-denied`. APPROVAL: as of `aios approve`."""
    waiting = as_steward(lambda cursor: _find(cursor, approval), as_json=as_json)
    _decide(waiting, Decision("denied", reason), as_json=as_json)


@click.command(epilog=EXIT_CODES)
@click.argument("operation", type=click.Choice(list(DEFAULT_RULES)), required=False)
@click.argument(
    "rule", type=click.Choice(["ask", "ask-when-lossy", "never", "default"]), required=False
)
@click.option("--agent", help="For this agent alone.")
@click.option("--tenant", default="default", show_default=True, help="Whose agents.")
@_json
def rules(
    operation: OperationClass | None,
    rule: str | None,
    agent: str | None,
    tenant: str,
    *,
    as_json: bool,
) -> None:
    """Show the rules, or say which operations of a class need a person.

    \b
    Examples:
      aios rules overwrite never --agent scribe
      aios rules overwrite default --agent scribe
    """  # noqa: D301 - \b keeps click from wrapping
    if operation is not None and rule is None:
        raise click.UsageError("a RULE is missing")

    async def work(store: Store) -> list[Any]:
        async with store.as_steward() as cursor:
            whose = None if agent is None else await store.agent(agent, tenant, cursor)
            if operation is not None:
                chosen: ApprovalRule | None = None
                if rule != "default":
                    chosen = msgspec.convert(rule, ApprovalRule)
                await set_rule(cursor, tenant, whose, operation, chosen)
                await append_line(
                    cursor,
                    AuditLine(
                        tenant,
                        operator(),
                        "access.set_rule",
                        f"{operation} of {agent or 'all'}",
                        f"{rule}",
                    ),
                )
            await cursor.execute(
                "SELECT t.name AS tenant, a.name AS agent, r.operation, r.rule "
                "FROM approval_rule r JOIN tenant t ON t.id = r.tenant_id "
                "LEFT JOIN agent a ON a.id = r.agent_id "
                "ORDER BY 1, 2 NULLS FIRST, 3"
            )
            return list(await cursor.fetchall())

    rows = with_store(work, as_json=as_json)
    if as_json:
        show_json([row._asdict() for row in rows])
        return
    shown = [("*", "*", operation, rule) for operation, rule in DEFAULT_RULES.items()]
    shown += [(row.tenant, row.agent or "*", row.operation, row.rule) for row in rows]
    show_table((Column("Tenant"), Column("Agent"), Column("Operation"), Column("Rule")), shown)


@click.group(invoke_without_command=True, epilog=EXIT_CODES)
@click.option("--agent", help="Only what this agent did.")
@click.option("--tenant", help="Only of this tenant.")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=100,
    show_default=True,
    help="At most so many.",
)
@_json
@click.pass_context
def audit(
    context: click.Context, agent: str | None, tenant: str | None, limit: int, *, as_json: bool
) -> None:
    """Show the audit log, newest first, or verify that it is what was written."""
    if context.invoked_subcommand is not None:
        return
    entries = as_steward(
        lambda cursor: newest_lines(cursor, tenant=tenant, actor=agent, limit=limit),
        as_json=as_json,
    )
    if as_json:
        show_json(entries)
    else:
        show_audit(entries)


@audit.command(name="verify")
@_json
def verify_(*, as_json: bool) -> None:
    """Walk the whole chain of hashes. Exit code 1: a line was changed or removed."""
    verdict = as_steward(verify, as_json=as_json)
    if as_json:
        show_json(verdict)
    elif verdict.broken_seq is None:
        click.echo(
            f"{verdict.lines} lines are as they were written; the newest hash is "
            f"{verdict.last_hash}"
        )
    else:
        click.echo(f"line {verdict.broken_seq}: {verdict.why}", err=True)
    if verdict.broken_seq is not None:
        raise SystemExit(EXIT_BROKEN)


def operator() -> str:
    """Return who decides: the operating system's user."""
    return f"operator:{getpass.getuser()}"


async def _find(cursor: Cursor, typed: str) -> Approval:
    found = await find_approvals(cursor, typed, 2) if len(typed) >= FEWEST_DIGITS else ()
    if len(found) > 1:
        raise InvalidSyscall(
            f"more than one approval begins with {typed}",
            field="approval",
            remedy="type more digits",
        )
    if not found:
        raise NotFound(
            f"there is no approval {typed}",
            field="approval",
            remedy="see which there are: `aios approvals --all`",
        )
    return found[0]


def _arguments(source: str, *, as_json: bool) -> dict[str, Any]:
    data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise CommandFailed(
            InvalidSyscall(
                f"{source} is no JSON object: {error}",
                field="arguments",
                remedy="give an object like the one that `aios approvals --json` shows",
            ),
            as_json=as_json,
        ) from error


def _show(waiting: Approval, arguments: dict[str, Any] | None) -> None:
    click.echo(f"{waiting.tenant}/{waiting.agent} wants to: {waiting.what}")
    click.echo(f"{waiting.kind} {msgspec.json.encode(waiting.arguments).decode()}")
    if waiting.diff:
        click.echo(waiting.diff)
    if arguments is not None:
        click.echo(arguments_diff(waiting.arguments, arguments))


def _decide(waiting: Approval, decision: Decision, *, as_json: bool) -> None:
    decided = as_steward(
        lambda cursor: decide(cursor, waiting.id, Decider(operator()), decision), as_json=as_json
    )

    async def go_on(operator: Operator) -> None:
        # The kernel's own sweep does it within a second where this fails.
        module = parse_module(module_of(decided.kind))
        await operator.control.unpark([decided.syscall_id], module=module)

    with_kernel(go_on, as_json=as_json)
    if as_json:
        show_json(decided)
    else:
        click.echo(f"{decided.state}: {decided.what}")
