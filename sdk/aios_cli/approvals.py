"""`aios approvals | approve | deny | rules | audit | token`: what the operator decides."""

import asyncio
import contextlib
import getpass
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from aios_broker.contract.access import Approval, ApprovalRule, AuditEntry, OperationClass
from aios_broker.contract.errors import InvalidConfig, InvalidSyscall, NotFound
from aios_broker.contract.syscall import module_of
from aios_broker.postgres.session import Cursor, Store
from aios_broker.queues.tokens import Identity, Tokens, digest
from aios_cli.lookup import check_name, parse_module
from aios_cli.session import EXIT_CODES, Operator, database_url, with_kernel
from aios_cli.tables import Column, Listing, moment, short_id, show_json, show_table
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
from aios_workers.modules.access.identity import put_token

MOST = 1_000  # approvals that are listed
FEWEST_DIGITS = 4  # of an id that is abbreviated
EXIT_BROKEN = 1  # the audit log is not what was written

T = TypeVar("T")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

APPROVALS = Listing[Approval](
    (Column("Approval"), lambda one: one.id),
    (Column("State"), lambda one: one.state),
    (Column("Agent"), lambda one: f"{one.tenant}/{one.agent}"),
    (Column("Syscall"), lambda one: short_id(one.syscall_id)),
    (Column("Until"), lambda one: moment(one.expires_at)),
    (Column("What", shrinks=True), lambda one: one.what),
)
AUDIT = Listing[AuditEntry](
    (Column("No", "right"), lambda one: one.seq),
    (Column("At"), lambda one: moment(one.at)),
    (Column("Actor"), lambda one: f"{one.tenant}/{one.actor}"),
    (Column("Action"), lambda one: one.action),
    (Column("Object", shrinks=True), lambda one: one.object),
    (Column("Outcome", shrinks=True), lambda one: one.outcome),
)


def kernel_store() -> Store:
    """Return the database of the running kernel, not connected yet.

    Raises:
        InvalidConfig: the kernel keeps none.
    """
    return Store(database_url(), name="aios-cli")


def as_steward(work: Callable[[Cursor], Awaitable[T]]) -> T:
    """Run work in one transaction, on the kernel's database, that sees all agents' rows."""

    async def run() -> T:
        async with contextlib.aclosing(kernel_store()) as store, store.as_steward() as cursor:
            return await work(cursor)

    return asyncio.run(run())


@click.command(epilog=EXIT_CODES)
@click.option("--all", "whole", is_flag=True, help="Those that are decided, too.")
@_json
def approvals(*, whole: bool, as_json: bool) -> None:
    """List what waits for a person to allow it, oldest first."""
    found = as_steward(lambda cursor: list_approvals(cursor, None if whole else "waiting", MOST))
    if as_json:
        show_json(found)
    else:
        APPROVALS.show(found)


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
    arguments = None if edit is None else _arguments(edit)
    waiting = as_steward(lambda cursor: _find(cursor, approval))
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
    waiting = as_steward(lambda cursor: _find(cursor, approval))
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

    async def work() -> list[Any]:
        async with contextlib.aclosing(kernel_store()) as store, store.as_steward() as cursor:
            if operation is not None:
                whose = None if agent is None else await store.agent(agent, tenant, cursor)
                chosen = None if rule == "default" else msgspec.convert(rule, ApprovalRule)
                await set_rule(cursor, tenant, whose, operation, chosen)
                what = f"{operation} of {agent or 'all'}"
                line = AuditLine(tenant, operator(), "access.set_rule", what, f"{rule}")
                await append_line(cursor, line)
            await cursor.execute(
                "SELECT t.name AS tenant, a.name AS agent, r.operation, r.rule "
                "FROM approval_rule r JOIN tenant t ON t.id = r.tenant_id "
                "LEFT JOIN agent a ON a.id = r.agent_id "
                "ORDER BY 1, 2 NULLS FIRST, 3"
            )
            return list(await cursor.fetchall())

    rows = asyncio.run(work())
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
        lambda cursor: newest_lines(cursor, tenant=tenant, actor=agent, limit=limit)
    )
    if as_json:
        show_json(entries)
    else:
        AUDIT.show(entries)


@audit.command(name="verify")
@_json
def verify_(*, as_json: bool) -> None:
    """Walk the whole chain of hashes. Exit code 1: a line was changed or removed."""
    verdict = as_steward(verify)
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


@click.command(epilog=EXIT_CODES)
@click.argument("agent")
@click.option("--tenant", default="default", show_default=True, help="Whose agent it is.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def token(agent: str, tenant: str, *, as_json: bool) -> None:
    """Issue a token for AGENT and print it, this once.

    A job that a stock RQ producer enqueues carries it; without it such a job is refused. The
    kernel keeps only a digest of it, in Redis and, where AIOS_DATABASE_URL or the running kernel
    names one, in its database, from where a Redis that was emptied gets it back.
    """
    check_name("agent", agent)
    check_name("tenant", tenant)
    issued = Tokens.new()

    async def put(kernel: Operator) -> None:
        await _enter(issued, agent, tenant)
        await Tokens(kernel.connection, kernel.keys).put(issued, Identity(agent, tenant))

    with_kernel(put)
    if as_json:
        show_json({"agent": agent, "tenant": tenant, "token": issued})
    else:
        click.echo(issued)


async def _enter(issued: str, agent: str, tenant: str) -> None:
    try:
        opened = kernel_store()
    except InvalidConfig:  # a kernel without a database: Redis alone has its tokens
        return
    line = AuditLine(tenant, operator(), "access.token", f"agent {agent}", "done")
    async with contextlib.aclosing(opened) as store:
        whose = await store.vouched(agent, tenant)
        async with store.as_steward() as cursor:
            await put_token(cursor, whose.id, digest(issued), None)
            await append_line(cursor, line)


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


def _arguments(source: str) -> dict[str, Any]:
    data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise InvalidSyscall(
            f"{source} is no JSON object: {error}",
            field="arguments",
            remedy="give an object like the one that `aios approvals --json` shows",
        ) from error


def _show(waiting: Approval, arguments: dict[str, Any] | None) -> None:
    click.echo(f"{waiting.tenant}/{waiting.agent} wants to: {waiting.what}")
    click.echo(f"{waiting.kind} {msgspec.json.encode(waiting.arguments).decode()}")
    if waiting.diff:
        click.echo(waiting.diff)
    if arguments is not None:
        click.echo(arguments_diff(waiting.arguments, arguments))


def _decide(waiting: Approval, decision: Decision, *, as_json: bool) -> None:
    decided = as_steward(lambda cursor: decide(cursor, waiting.id, Decider(operator()), decision))

    async def go_on(operator: Operator) -> None:
        # The kernel's own sweep does it within a second where this fails.
        module = parse_module(module_of(decided.kind))
        await operator.control.unpark([decided.syscall_id], module=module)

    with_kernel(go_on)
    if as_json:
        show_json(decided)
    else:
        click.echo(f"{decided.state}: {decided.what}")
