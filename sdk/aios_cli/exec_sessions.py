"""`aios exec`: interpreters of an agent that keep what was run in them."""

import contextlib
import sys

import click

from aios_broker.contract import exec as contract
from aios_broker.contract.errors import UnknownSession
from aios_cli.call import Fields, fields_of, json_option, option_of, text_or_stdin
from aios_cli.exec_prompt import Lines, Prompt, ReadLines, TerminalLines
from aios_cli.session import (
    EXIT_CODES,
    EXIT_FAILED,
    Interrupted,
    current_config,
    find_kernel,
)
from aios_cli.state_modules import Operation, commands_of, who_asks
from aios_cli.tables import say
from aios_sdk import Agent

RUN_S = 600.0  # of a run at the prompt, unless told
DEADLINE_S = 60.0  # of a run, beside the time that it may take: it may wait for others


def _with_code(values: Fields) -> Fields:
    return {**values, "code": text_or_stdin(str(values["code"]))}


def _with_manifest(values: Fields) -> Fields:
    """Put the options that say what a session begins with into its manifest."""
    workspace = dict(values.pop("workspace", None) or {})  # type: ignore[call-overload]
    if files := values.pop("files", None):
        workspace["files"] = [*workspace.get("files", ()), *files]  # type: ignore[misc]
    return {**values, "workspace": workspace} if workspace else values


def _without_diff(values: Fields) -> Fields:
    return {**values, "diff": False} if values.pop("no_diff", False) else values


_PATHS = {"paths": "Only this path, or what is meant by a pattern; may be repeated"}
_MANIFEST = (
    click.Option(
        ["--file", "files"],
        multiple=True,
        metavar="PATTERN",
        help="Put these files of the agent's storage into it; may be repeated.",
    ),
    json_option(["--workspace"], "The whole manifest: files, shared, ignore, limits."),
)
_OPERATIONS = {
    "open": Operation(
        contract.ExecOpen,
        "Begin a session; prints its id.",
        words={
            "interpreter": "What runs in it",
            "name": "What people call it",
            "idle_s": "It ends when nothing was run for so long",
        },
        others=_MANIFEST,
        stands_for=("limits", "tools", "workspace"),
        make=_with_manifest,
    ),
    "run": Operation(
        contract.ExecRun,
        "Run CODE in a session; `-` reads it from standard input.",
        ("session", "code"),
        words={"timeout_s": "It is interrupted after so long"},
        make=_with_code,
    ),
    "interrupt": Operation(
        contract.ExecInterrupt, "End what runs in a session; what it holds stays.", ("session",)
    ),
    "reset": Operation(
        contract.ExecReset, "Begin a session anew, with nothing in it.", ("session",)
    ),
    "close": Operation(contract.ExecClose, "End a session.", ("session",)),
    "list": Operation(contract.ExecList, "List the agent's sessions."),
    "changes": Operation(
        contract.ExecChanges,
        "Tell what its code made of the files that it began with.",
        ("session",),
        _PATHS,
        (click.Option(["--no-diff"], is_flag=True, help="Without the texts."),),
        ("diff",),
        _without_diff,
    ),
    "commit": Operation(
        contract.ExecCommit,
        "Write that to storage, all or none; `aios approvals` has what waits for a person.",
        ("session",),
        _PATHS,
    ),
    "discard": Operation(
        contract.ExecDiscard, "Put the files back to what it began with.", ("session",), _PATHS
    ),
}


def _prompt(
    session: str | None,
    interpreter: contract.Interpreter | None,
    timeout_s: float | None,
    as_agent: str,
    as_program: str,
    as_tenant: str,
) -> None:
    timeout_s = RUN_S if timeout_s is None else timeout_s
    url = find_kernel().redis_url
    me = Agent(as_agent, url=url, program=as_program, tenant=as_tenant)
    with contextlib.ExitStack() as stack:
        stack.enter_context(me)
        me = me.with_options(deadline_s=timeout_s + DEADLINE_S)
        if session is None:
            opened = stack.enter_context(me.exec.open(interpreter or "python"))
            found: contract.ExecSession = opened
        else:
            found = _known(me, session)
            if interpreter not in (None, found.interpreter):
                raise click.UsageError(f"what runs in session {session} is {found.interpreter}")
        lines: Lines = ReadLines()
        if sys.stdin.isatty():
            lines = TerminalLines(found.interpreter)
            stack.enter_context(lines.kept(current_config().state_dir))
            leaves = "closes it" if session is None else "leaves it, and it stays"
            say(
                f"session {found.id} ({found.interpreter}, sandbox: {found.sandbox}): Ctrl-C "
                f"interrupts what runs, Ctrl-D {leaves}",
                err=True,
            )
        for words in found.warnings:
            say(words, err=True)
        prompt = Prompt(me, found.id, found.interpreter, timeout_s)
        try:
            prompt.serve(lines)
        except KeyboardInterrupt:
            raise Interrupted from None
        if lines.is_terminal:
            say(err=True)
    if prompt.failed and not lines.is_terminal:
        raise SystemExit(EXIT_FAILED)


def _known(me: Agent, session: str) -> contract.ExecSession:
    """Return the agent's session whose id begins like this."""
    found = [one for one in me.exec.list().sessions if one.id.startswith(session)]
    if len(found) != 1:
        many = f"{len(found)} sessions begin with" if found else "there is no exec session"
        raise UnknownSession(f"{many} {session}", remedy="`aios exec list` shows the agent's")
    return found[0]


_OPEN, _RUN = fields_of(contract.ExecOpen), fields_of(contract.ExecRun)
prompt = click.Command(
    "prompt",
    callback=_prompt,
    params=[
        click.Argument(["session"], required=False),
        option_of(_OPEN["interpreter"], "What runs in a new one"),
        option_of(_RUN["timeout_s"], f"A run is interrupted after so long; {RUN_S:g} unless given"),
        *who_asks(),
    ],
    help="""Type lines that are run in a session: a new one, or SESSION.

    Ctrl-C interrupts what runs, twice ends it. Ctrl-D leaves; a new session is closed. What is no
    terminal is read line by line; the exit code is then 1 where a run ended in an error.
    """,
    epilog=EXIT_CODES,
)


class _Sessions(click.Group):
    """The group; alone it is the prompt."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Take the prompt where no command is named."""
        return super().parse_args(context, args or [prompt.name or ""])


sessions = _Sessions(
    "exec",
    [*commands_of(_OPERATIONS), prompt],
    epilog=EXIT_CODES,
    help="""Open interpreters that keep what is run in them, and run code there.

    Alone it is a prompt, as `aios exec prompt`.

    \b
    Examples:
      aios exec
      aios exec prompt --interpreter shell --agent ada
      aios exec < script.py
      aios exec open --interpreter shell
      aios exec run 3f2a91bc... 'x = 40'
      aios exec run 3f2a91bc... - < script.py
      aios exec open --file 'notes/**/*.md'
      aios exec changes 3f2a91bc...
      aios exec list
    """,
)
