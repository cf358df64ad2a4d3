"""`aios`: the table of commands. Each is imported when it is used, so that help comes at once."""

import contextlib
import importlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from aios_broker.config import KernelConfig, environment
from aios_broker.contract.errors import InvalidConfig, KernelError
from aios_cli.text import argument

USAGE_EXIT_CODE = 2
JSON_ASKED = f"{__name__}.json"  # where a context keeps whether errors are wanted as JSON
WORDS = f"{__name__}.words"  # where it keeps what was typed


@dataclass(frozen=True, slots=True)
class Entry:
    """One command: where it is, and its line in `aios --help`."""

    target: str  # module:attribute
    help: str


COMMANDS = {
    "demo": Entry(
        "aios_cli.demo.command:demo", "Run agents on a kernel of their own, and compare."
    ),
    "up": Entry("aios_cli.up:up", "Start a kernel on this machine."),
    "down": Entry("aios_cli.up:down", "Stop the kernel."),
    "status": Entry("aios_cli.up:status", "Show the kernel's addresses and processes."),
    "ui": Entry("aios_cli.ui:ui", "Log in to the page, by a link that works once."),
    "cores": Entry("aios_cli.cores:cores", "Show and change the models that the kernel has."),
    "submit": Entry("aios_cli.submit:submit", "Submit a syscall and print its reply."),
    "ps": Entry("aios_cli.ps:ps", "List the syscalls that wait or run."),
    "top": Entry("aios_cli.top:top", "Watch the kernel at work."),
    "queues": Entry("aios_cli.ps:queues", "Show the queues of the modules."),
    "why": Entry("aios_cli.why:why", "Say why a syscall waits."),
    "strace": Entry("aios_cli.journal:strace", "Follow syscalls: arguments and answers."),
    "journal": Entry("aios_cli.journal:journal", "Print every change of state."),
    "export": Entry("aios_cli.export:export", "Write what happened into a file."),
    "metrics": Entry("aios_cli.ps:metrics", "Print the kernel's metrics."),
    "kill": Entry("aios_cli.syscalls:kill", "Cancel syscalls."),
    "suspend": Entry("aios_cli.syscalls:suspend", "Hold syscalls: out of the run queue."),
    "resume": Entry("aios_cli.syscalls:resume", "Put held syscalls back."),
    "nice": Entry("aios_cli.syscalls:nice", "Set the nice value of syscalls."),
    "policy": Entry("aios_cli.policy:policy", "Show or change who goes first."),
    "quota": Entry("aios_cli.policy:quota", "Show or change what agents may use."),
    "usage": Entry("aios_cli.usage:usage", "Show what was used, and what it cost."),
    "agents": Entry("aios_cli.agents:agents", "Register agents, make tokens, set rights, suspend."),
    "memory": Entry(
        "aios_cli.state_modules:memory_commands", "Keep, find and share an agent's notes."
    ),
    "files": Entry("aios_cli.state_modules:files", "Read, change and share an agent's files."),
    "groups": Entry("aios_cli.state_modules:groups", "Show and change privilege groups."),
    "grants": Entry("aios_cli.state_modules:grants", "Show and change who may do what."),
    "tools": Entry("aios_cli.tools:tools", "Show, change, test and call tools."),
    "exec": Entry("aios_cli.exec_sessions:sessions", "Run code in sessions that keep it."),
    "approvals": Entry("aios_cli.approvals:approvals", "List what waits for a person."),
    "approve": Entry("aios_cli.approvals:approve", "Let it run, once."),
    "deny": Entry("aios_cli.approvals:deny", "Refuse it."),
    "rules": Entry("aios_cli.approvals:rules", "Show or set what needs a person."),
    "audit": Entry("aios_cli.approvals:audit", "Show or verify the audit log."),
    "migrate": Entry("aios_cli.doctor:migrate", "Bring the database to this version."),
    "secrets": Entry("aios_cli.deployment:secrets", "Write the secrets of a fleet into a folder."),
    "reindex": Entry("aios_cli.doctor:reindex", "Embed all notes and files anew."),
    "doctor": Entry("aios_cli.doctor:doctor", "Check every part; say what to do."),
    "setup": Entry("aios_cli.doctor:setup", "Install the embedded models."),
}
OF_A_CHECKOUT = ("bench", "python", "test")  # the script `./aios` has them, the product has not


class LazyGroup(click.Group):
    """A table as a click group: lists all, imports what is called."""

    def __init__(
        self,
        name: str,
        table: Mapping[str, Entry],
        *,
        help_text: str,
        params: list[click.Parameter] | None = None,
    ) -> None:
        """Take the commands' table; `params` are options of the group and of each command."""
        super().__init__(
            name=name,
            help=help_text,
            params=params,
            no_args_is_help=True,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        )
        self._table = table
        self._shared = tuple(params or ())

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the commands in the order of the table."""
        return list(self._table)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Import a command; add the options that all of them share."""
        entry = self._table.get(name)
        if entry is None:
            if name in OF_A_CHECKOUT:
                raise click.UsageError(f"run `./aios {name}` in a checkout of the repository")
            return None
        module, _, attribute = entry.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        command.params.extend(one for one in self._shared if one not in command.params)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table alone."""
        rows = [(name, self._table[name].help) for name in self.list_commands(context)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Note whether JSON is asked for: errors come before the command has read its options."""
        context.meta[JSON_ASKED], context.meta[WORDS] = "--json" in args, tuple(args)
        with self._ending(context):
            return super().parse_args(context, [argument(each) for each in args])

    def invoke(self, context: click.Context) -> object:
        """Run the command; end with a message and an exit code where it ends with an error."""
        try:
            with self._ending(context):
                return super().invoke(context)
        except click.UsageError as error:
            if not context.meta[JSON_ASKED]:
                raise
            body = {"error": {"code": "usage", "message": error.format_message()}}
            click.echo(json.dumps(body, indent=2))  # of the environment alone, and ASCII
            context.exit(USAGE_EXIT_CODE)

    @contextlib.contextmanager
    def _ending(self, context: click.Context) -> Iterator[None]:
        """End with a message and an exit code where a KernelError is raised."""
        try:
            yield
        except KernelError as error:
            # Here and not above: only the few runs that fail pay for the imports.
            from aios_cli.error_words import command_of  # noqa: PLC0415
            from aios_cli.session import CommandFailed  # noqa: PLC0415

            command, path = command_of(self, context, context.meta[WORDS])
            as_json = bool(context.meta[JSON_ASKED])
            raise CommandFailed(error, command, path, as_json=as_json) from error


def _show_version(context: click.Context, _option: click.Parameter, asked: bool) -> None:  # noqa: FBT001  click's
    if asked:
        version = importlib.metadata.version("aios-broker")
        click.echo(f"aios {version} (Python {platform.python_version()})")
        context.exit()


def _use_state_dir(
    context: click.Context, _option: click.Parameter, state_dir: Path | None
) -> None:
    """Read the settings into the context, for the commands to find.

    Settings that cannot be read are nobody's business yet: help needs none, and a command that
    does need them reads them again and fails there.
    """
    if state_dir is None and isinstance(context.obj, KernelConfig):
        return
    environ = environment()
    if state_dir is not None:
        environ["AIOS_STATE_DIR"] = str(state_dir.absolute())
    try:
        context.obj = KernelConfig.from_environment(environ)
    except InvalidConfig:
        if state_dir is not None:
            raise


cli = LazyGroup(
    "aios",
    COMMANDS,
    help_text="""An operating-system kernel for LLM agents, built on Redis queues.

    \b
    Examples:
      aios demo                what it is good for, on this machine, in two minutes
      aios up --detach         a kernel in the background
      aios submit "Say hello"  one syscall, and its reply
      aios why 3f2a91bc        what a syscall waits for
    """,
    params=[
        click.Option(
            ["--state-dir"],
            type=click.Path(file_okay=False, path_type=Path),
            expose_value=False,
            callback=_use_state_dir,
            help="Where the kernel keeps its data; without it AIOS_STATE_DIR, else the user's "
            "default.",
        )
    ],
)
cli.params.append(
    click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_version,
        help="Print the version.",
    )
)
