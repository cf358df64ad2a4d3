"""`aios approvals | approve | deny | rules | audit`: what the operator decides."""

import asyncio
import contextlib
import getpass
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.cells import chop_cells

from aios_broker.access.audit import (
    AuditLine,
    AuditVerdict,
    Beginning,
    append_line,
    begin_chain,
    in_one,
    newest_lines,
    no_key,
    verify,
)
from aios_broker.access.requests import (
    DEFAULT_RULES,
    Decision,
    arguments_diff,
    find_approvals,
    list_approvals,
    set_rule,
)
from aios_broker.contract.access import (
    Approval,
    ApprovalRule,
    ApprovalState,
    AuditEntry,
    OperationClass,
)
from aios_broker.contract.errors import InvalidSyscall, NotFound
from aios_broker.contract.json_text import DuplicateKey, refuse_duplicate_keys
from aios_broker.contract.printable import printable
from aios_broker.postgres.database import SERVICE_TIMEOUT_S
from aios_broker.postgres.store import Cursor, Store
from aios_broker.views.settings import decide_as_operator
from aios_broker.views.words import moment, plural, short_id
from aios_cli.session import (
    EXIT_CODES,
    Operator,
    command,
    current_config,
    database_url,
    with_kernel,
)
from aios_cli.tables import Column, Listing, Row, say, show_json, show_table

MOST = 1_000  # approvals that are listed
FEWEST_DIGITS = 4  # of an id that is abbreviated
QUOTE = "  | "  # before each line that agents wrote, or that begins with their words
WALK_LIMIT_S = 600.0  # of a walk along the whole audit log: some 10 us per line

T = TypeVar("T")

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


def kernel_store(limit_s: float = SERVICE_TIMEOUT_S) -> Store:
    """Return the database of the running kernel, not connected yet.

    `limit_s`: of each transaction.

    Raises:
        InvalidConfig: the kernel keeps none, or the audit log's key cannot be read.
    """
    key = current_config().audit_folder.key()
    return Store(database_url(), name="aios-cli", limit_s=limit_s, audit_key=key)


def as_steward(work: Callable[[Cursor], Awaitable[T]], *, limit_s: float = SERVICE_TIMEOUT_S) -> T:
    """Run work in one transaction, on the kernel's database, that sees all agents' rows."""

    async def run() -> T:
        async with (
            contextlib.aclosing(kernel_store(limit_s)) as store,
            store.as_steward() as cursor,
        ):
            return await work(cursor)

    return asyncio.run(run())


@command(APPROVALS.show)
@click.option("--all", "whole", is_flag=True, help="Those that are decided, too.")
@click.option(
    "--limit",
    type=click.IntRange(1, MOST),
    default=MOST,
    show_default=True,
    help="At most so many.",
)
@click.option("--after", metavar="APPROVAL", help="Those that come after this one: its whole id.")
def approvals(*, whole: bool, limit: int, after: str | None) -> Sequence[Approval]:
    """List what waits for a person to allow it: tenants and agents in turns, the oldest first."""
    state: ApprovalState | None = None if whole else "waiting"
    page = as_steward(lambda cursor: list_approvals(cursor, state, limit, after))
    if page.more:
        say(f"there are more: --after {page.approvals[-1].id}", err=True)
    return page.approvals


def _show_decided(decided: Approval) -> None:
    say(f"{decided.state}: {decided.what}")


@command(_show_decided)
@click.argument("approval")
@click.option(
    "--edit",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Run it with these arguments: a JSON file (`-`: standard input).",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def approve(approval: str, edit: str | None, *, yes: bool) -> Approval:
    """Let what waits run, once. APPROVAL: its id or its syscall's, which may be abbreviated.

    \b
    Examples:
      aios approve 3f2a91bc
      echo '{"path": "old/a.txt"}' | aios approve 3f2a91bc --edit - --yes
    """  # noqa: D301 - \b keeps click from wrapping
    arguments = None if edit is None else _arguments(edit)
    waiting = as_steward(lambda cursor: _find(cursor, approval))
    if not yes:
        show_request(waiting, arguments)
        click.confirm("Let it run?", abort=True)
    return _decide(waiting, Decision("approved", arguments=arguments))


@command(_show_decided)
@click.argument("approval")
@click.option("--reason", default="", help="What its caller is told.")
def deny(approval: str, reason: str) -> Approval:
    """End what waits: its caller hears `approval-denied`. APPROVAL: as of `aios approve`."""
    waiting = as_steward(lambda cursor: _find(cursor, approval))
    return _decide(waiting, Decision("denied", reason))


def _show_rules(rows: Sequence[Mapping[str, str]]) -> None:
    shown: list[Row] = [("*", "*", operation, rule) for operation, rule in DEFAULT_RULES.items()]
    shown += [(one["tenant"], one["agent"] or "*", one["operation"], one["rule"]) for one in rows]
    show_table((Column("Tenant"), Column("Agent"), Column("Operation"), Column("Rule")), shown)


@command(_show_rules)
@click.argument("operation", type=click.Choice(list(DEFAULT_RULES)), required=False)
@click.argument(
    "rule", type=click.Choice(["ask", "ask-when-lossy", "never", "default"]), required=False
)
@click.option("--agent", help="For this agent alone.")
@click.option("--tenant", default="default", show_default=True, help="Whose agents.")
def rules(
    operation: OperationClass | None, rule: str | None, agent: str | None, tenant: str
) -> list[dict[str, str]]:
    """Show the rules, or say which operations of a class need a person.

    \b
    Examples:
      aios rules overwrite never --agent scribe
      aios rules overwrite default --agent scribe
    """  # noqa: D301 - \b keeps click from wrapping
    if operation is not None and rule is None:
        raise click.UsageError("a RULE is missing")

    async def work() -> list[dict[str, str]]:
        async with contextlib.aclosing(kernel_store()) as store, store.as_steward() as cursor:
            if operation is not None:
                whose = None if agent is None else await store.agent(agent, tenant, cursor)
                chosen = None if rule == "default" else msgspec.convert(rule, ApprovalRule)
                await set_rule(cursor, tenant, whose, operation, chosen)
                what = f"{operation} of {agent or 'all'}"
                line = AuditLine(tenant, decider(), "access.set_rule", what, f"{rule}")
                await append_line(cursor, line)
            await cursor.execute(
                "SELECT t.name AS tenant, a.name AS agent, r.operation, r.rule "
                "FROM approval_rule r JOIN tenant t ON t.id = r.tenant_id "
                "LEFT JOIN agent a ON a.id = r.agent_id "
                "ORDER BY 1, 2 NULLS FIRST, 3"
            )
            return [row._asdict() for row in await cursor.fetchall()]

    return asyncio.run(work())


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
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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


def _show_verdict(verdict: AuditVerdict) -> None:
    if verdict.unproven:
        say(f"{plural(verdict.unproven, 'line')} before `aios audit begin`: not proven")
    if verdict.broken_seq is not None:
        say(f"line {verdict.broken_seq}: {verdict.why}", err=True)
        return
    say(f"{plural(verdict.lines, 'line')} as written: by who has the key, and in this order")
    if verdict.noted_seq is None:
        say("none was noted outside the database yet: what was cut off the end is not found")
    else:
        say(f"none up to line {verdict.noted_seq} lacks: it was noted outside the database")
    say(f"the newest hash is {verdict.last_hash}")


@command(_show_verdict, name="verify", failed=lambda verdict: verdict.broken_seq is not None)
def verify_() -> AuditVerdict:
    """Walk the chain of keyed hashes. Exit code 1: a line was changed, put in or removed.

    It proves this of all who have not the key (`audit/key` in the state directory): the database's
    superuser included. Lines cut off the end within a second of their writing may go unseen.
    """
    folder = current_config().audit_folder
    key, noted = folder.key(), folder.noted()
    if key is None:
        raise no_key()
    return as_steward(lambda cursor: verify(in_one(cursor), key, noted), limit_s=WALK_LIMIT_S)


def _show_begun(before: Beginning) -> None:
    proven = sum(each.last - each.first + 1 for each in before.proven)
    say(f"a new chain behind {plural(before.lines, 'line')}, of which {proven} stay proven")
    if before.broken_seq is not None:
        say(f"line {before.broken_seq}: {before.why}")


@command(_show_begun)
@click.option("--yes", is_flag=True, help="Do not ask.")
def begin(*, yes: bool) -> Beginning:
    """Begin a new chain behind what cannot be proven: a lost key, a database that was restored.

    Lines before it stay; those that the key proves now it goes on to prove, the others are taken
    as they are. Other hosts: remove their `audit/noted`.
    """
    if not yes:
        click.confirm(
            "Are lines that cannot be proven (`aios audit verify`) to be taken as they are?",
            abort=True,
        )
    folder = current_config().audit_folder
    noted = folder.noted()
    begun = as_steward(lambda cursor: begin_chain(cursor, decider(), noted), limit_s=WALK_LIMIT_S)
    folder.forget()
    return begun


audit.add_command(verify_)
audit.add_command(begin)


def decider() -> str:
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
        refuse_duplicate_keys(data)
        return msgspec.json.decode(data, type=dict[str, Any])
    except (DuplicateKey, msgspec.MsgspecError, RecursionError) as error:
        raise InvalidSyscall(
            f"{source} is no JSON object: {error}",
            field="arguments",
            remedy="give an object like the one that `aios approvals --json` shows",
        ) from error


def show_request(waiting: Approval, arguments: dict[str, Any] | None) -> None:
    """Print what a person decides about; `arguments`: those that it is to run with instead."""
    say(_stated(f"{waiting.tenant}/{waiting.agent} wants to: {waiting.what}"))
    say(f"{waiting.kind} with")
    say(_quoted(msgspec.json.encode(waiting.arguments).decode()))
    for one in waiting.objects:
        say(_stated(f"  {one.words}"))
    if waiting.diff:
        say(_quoted(waiting.diff))
    if arguments is not None:
        say(_quoted(asyncio.run(arguments_diff(waiting.arguments, arguments))))


def _stated(text: str) -> str:
    """Return a line of ours, which may name what agents named: where it goes on, it has the mark.

    A name of many blanks would else have the terminal begin its next line with words of its own.
    """
    first, *others = _chopped(printable(text, one_line=True))
    return "\n".join([first, *(QUOTE + part for part in others)])


def _quoted(text: str) -> str:
    """Return a text of which no line can be taken for one of ours: each has a mark before it."""
    lines = [line.expandtabs(4) for line in printable(text).split("\n")]
    return "\n".join(QUOTE + part for line in lines for part in _chopped(line))


def _chopped(line: str) -> list[str]:
    """Break a line before the terminal does, with room for the mark."""
    width = max(20, shutil.get_terminal_size().columns - len(QUOTE) - 1)
    return chop_cells(line, width) or [""]


def _decide(waiting: Approval, decision: Decision) -> Approval:
    async def work(operator: Operator) -> Approval:
        async with contextlib.aclosing(kernel_store()) as store:
            return await decide_as_operator(
                store, operator.control, waiting.id, decider(), decision
            )

    return with_kernel(work)
