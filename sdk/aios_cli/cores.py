"""`aios cores`: the models that a kernel has, added, shown, removed, tried out."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec
from msgspec import Struct

from aios_broker.catalogue import TABLE, catalogue_path, core_of_table, read_secret
from aios_broker.config import environment
from aios_broker.contract.cores import Core, LlamaSettings, key_variable
from aios_broker.contract.errors import InvalidConfig, UnknownCore
from aios_broker.process.child import wait_for
from aios_broker.views.words import plural
from aios_cli.call import given
from aios_cli.core_views import CoreLine, ask_fleet, core_lines, read_file
from aios_cli.cores_check import check
from aios_cli.session import EXIT_CODES, Operator, command, current_config, with_kernel
from aios_cli.tables import Column, Listing, say
from aios_local.cores_file import CoresFile
from aios_local.supervisor.cores import name_is_taken

START_WAIT_S = 60.0  # a larger model goes on loading; its caller need not wait
START_POLL_S = 0.3

if TYPE_CHECKING:
    from aios_cli.pull import PullResult

Command = TypeVar("Command", bound=Callable[..., object])

# Options of `aios cores add` that stand in a table of their own, by their settings' names.
GROUPED = {
    "price": {
        "price_in": "input",
        "price_out": "output",
        "price_cached": "cached_input",
        "currency": "currency",
    },
    "limits": {
        "rpm": "requests_per_minute",
        "tpm": "tokens_per_minute",
        "account": "account",
    },
}
GONE_LIMIT_S = 20.0  # a worker drains for 8 s before it leaves
GONE_POLL_S = 0.2


@click.group(epilog=EXIT_CODES)
def cores() -> None:
    """Show and change the models that the kernel has.

    They stand in a file, cores.toml in the state directory: edit it by hand or by these commands. A
    running kernel follows it within seconds, and leaves the cores alone that have not changed.

    \b
    Examples:
      aios cores add qwen --gguf qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --default
      aios cores add hosted --url https://llm.example.com/v1 --model big --api-key-env EXAMPLE_KEY
      aios cores add gpu --kind sglang --url http://10.0.0.7:30000 --slots 32
      aios cores check qwen
    """  # noqa: D301 - \b keeps click from wrapping


def cores_file() -> CoresFile:
    """Return the file of the kernel that this command is meant for."""
    config = current_config()
    return CoresFile(catalogue_path(config.state_dir, config.cores))


class Changed(Struct, frozen=True):
    """A core that was added or changed, and what that means."""

    name: str
    notes: tuple[str, ...] = ()


def _show_changed(done: Changed) -> None:
    for note in done.notes:
        say(note)


def shared_options(command_: Command) -> Command:
    """Add the options of every way to add a core."""
    for option in (
        click.option("--slots", type=click.IntRange(1, 1024), help="Generations at once: 2."),
        click.option("--workers", type=click.IntRange(0, 64), help="Processes: 1."),
        click.option(
            "--context-tokens", type=click.IntRange(256), help="At most; else what the model has."
        ),
        click.option("--alias", "aliases", multiple=True, help="Another name for it; repeat."),
        click.option("--default", is_flag=True, help="It takes what names no core."),
        click.option("--fallback", multiple=True, help="Who goes on where it fails; repeat."),
    ):
        command_ = option(command_)
    return command_


@command(_show_changed)
@click.argument("name")
@click.option("--gguf", metavar="FILE", help="A model file, run by llama.cpp in the worker.")
@click.option("--url", help="An endpoint: an OpenAI-compatible one up to /v1, or SGLang's.")
@click.option("--model", help="The model's name there; of SGLang without --url: what to load.")
@click.option("--kind", type=click.Choice(["openai", "sglang"]), help="Of the endpoint: openai.")
@click.option("--simulated", is_flag=True, help="The deterministic core of tests.")
@shared_options
@click.option("--price-in", type=float, help="Per million prompt tokens.")
@click.option("--price-out", type=float, help="Per million output tokens.")
@click.option("--price-cached", type=float, help="Per million cached prompt tokens; as --price-in.")
@click.option("--currency", help="Of the prices: USD.")
@click.option("--rpm", type=click.IntRange(0), help="Requests per minute of the account.")
@click.option("--tpm", type=click.IntRange(0), help="Tokens per minute of the account.")
@click.option("--account", help="Cores that name the same one share its limits.")
@click.option("--api-key-env", metavar="VARIABLE", help="That holds the key, where `aios up` runs.")
@click.option("--api-key-file", metavar="FILE", help="That holds the key and nothing else.")
@click.option("--threads", type=click.IntRange(1, 256), help="Of llama.cpp.")
@click.option("--gpu-layers", type=click.IntRange(0), help="Of llama.cpp, where it has a GPU.")
@click.option(
    "--grade",
    type=click.Choice(["exact", "same-context"]),
    help="What resuming keeps: every token, or the context.",
)
@click.option(
    "--prefill",
    type=click.Choice(["auto", "none", "assistant", "continue_final_message", "prefix"]),
    help="How the endpoint goes on with an unfinished message: auto.",
)
def add(name: str, **values: object) -> Changed:
    """Add a core: a model file, an endpoint, or a simulated one.

    \b
    Examples:
      aios cores add qwen --gguf qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --slots 4 --default
      aios cores add hosted --url https://llm.example.com/v1 --model big --api-key-env EXAMPLE_KEY
      aios cores add gpu --kind sglang --url http://10.0.0.7:30000 --slots 32 --alias llama-8b
    """  # noqa: D301 - \b keeps click from wrapping
    return add_core(name, core_of_options(name, values))


def core_of_options(name: str, values: Mapping[str, object]) -> Core:
    """Return the core that the options of `aios cores add` describe.

    Raises:
        InvalidConfig: It cannot work; `field` names the core and the setting.
    """
    said = given(values)
    table: dict[str, object] = {"kind": _kind(said)}
    for within, fields in GROUPED.items():
        grouped = {field: said.pop(option) for option, field in fields.items() if option in said}
        if grouped:
            table[within] = grouped
    table |= said
    for path in ("gguf", "api_key_file"):
        if path in table:
            table[path] = str(Path(str(table[path])).expanduser().absolute())
    return core_of_table(name, table)


def _kind(said: dict[str, object]) -> str:
    """Return which kind of core the options speak of; take out what is no setting of it."""
    chosen = said.pop("kind", None)
    ways = {
        "llama": "gguf" in said,
        "simulated": bool(said.pop("simulated", False)),
        str(chosen or "openai"): "url" in said or chosen is not None,
    }
    kinds = [kind for kind, is_meant in ways.items() if is_meant]
    if len(kinds) != 1:
        raise click.UsageError("one of --gguf FILE, --url URL --model M, and --simulated")
    return kinds[0]


def add_core(name: str, core: Core) -> Changed:
    """Write a core into the file, when all that can be checked without running it is well.

    Raises:
        InvalidConfig: Its file, its key or its name will not do; nothing was written.
    """
    config = current_config()
    if name == config.environment_core:
        raise name_is_taken(name)
    check_files(name, core)
    notes = _notes_on_key(name, core)
    file = cores_file()
    file.add(name, core)
    if not core.default:
        notes.append(_what_is_default(name))
    running = ask_fleet() is not None
    notes.append(_started(name, core) if running else "`aios up` starts it with the kernel")
    return Changed(name, (f"core {name} is in {file.path}", *notes))


def _started(name: str, core: Core) -> str:
    """Wait until the running kernel serves a new core, or says why it does not; return which."""
    if core.workers == 0:
        return "it has no worker here: others serve it"

    def line() -> CoreLine:
        lines = core_lines(current_config(), ask_fleet())
        return next(each for each in lines if each.name == name)

    say("the kernel starts it", err=True)
    wait_for(lambda: line().state in ("serves", "fails", "wrong"), START_WAIT_S, START_POLL_S)
    found = line()
    if found.state == "serves":
        return f"it serves: `aios cores check {name}` asks it once"
    if found.problem:
        return f"it does not start: {found.problem}"
    return "it still starts: `aios cores list` tells when it serves"


def check_files(name: str, core: Core) -> None:
    """Refuse a core whose model file or key file will not do.

    Raises:
        InvalidConfig: `field` names the core and the setting.
    """
    if isinstance(core, LlamaSettings) and core.gguf is not None:
        # Not sooner: it brings tables of names, and few commands need them.
        from aios_workers.llm.cores.llama.gguf import read_gguf  # noqa: PLC0415

        try:
            read_gguf(Path(core.gguf))
        except InvalidConfig as error:
            error.field = f"{TABLE}.{name}.gguf"
            raise
    if getattr(core, "api_key_file", None) is not None:
        read_secret(core, name, {})


def _notes_on_key(name: str, core: Core) -> list[str]:
    variable = key_variable(core)
    if variable is None:
        return []
    environ = environment()
    if environ.get(variable):
        read_secret(core, name, environ)  # refuses what is no key
        return []
    return [f"{variable} is not set here; it has to be where `aios up` is run"]


def _what_is_default(name: str) -> str:
    config = current_config()
    found = [other for other, core in read_file(config).cores.items() if core.default]
    default = found[0] if found else config.environment_core
    takes = f"{default} takes" if default is not None else "any core takes"
    return f"{takes} what names no core; `aios cores default {name}` changes that"


def _workers(line: CoreLine) -> str:
    return str(line.alive) if line.source == "fleet" else f"{line.alive}/{line.workers}"


CORES = Listing[CoreLine](
    (Column("core", shrinks=True), lambda line: line.name),
    (Column("kind"), lambda line: line.kind),
    (Column("model", shrinks=True), lambda line: line.model),
    (Column("slots", "right"), lambda line: line.slots or ""),
    (Column("workers", "right"), _workers),
    (Column("waiting", "right"), lambda line: line.waiting),
    (Column("default"), lambda line: "yes" if line.default else ""),
    (Column("aliases", shrinks=True), lambda line: ", ".join(line.aliases)),
    (Column("state"), lambda line: line.state),
)


def _show_list(lines: Sequence[CoreLine]) -> None:
    if lines:
        CORES.show(lines)
    else:
        say("no core is described: add one with `aios cores add`")
    for line in lines:
        if line.problem:
            say(f"\n{line.name}: {line.problem}")


def _is_unwell(lines: Sequence[CoreLine]) -> bool:
    return any(line.state in {"fails", "wrong"} for line in lines)


@command(_show_list, name="list", failed=_is_unwell)
def list_() -> list[CoreLine]:
    """List the cores: what they are, and how they are.

    \b
    serves  a worker answers for it     starts  its worker loads it
    fails   its worker does not start   wrong   its table in the file will not do
    away    no worker serves it         off     no kernel runs here

    Exit code 1: one fails or is wrong.
    """  # noqa: D301 - \b keeps click from wrapping
    return core_lines(current_config(), ask_fleet())


class CoreReport(Struct, frozen=True, kw_only=True):
    """One core: how it is, and its settings."""

    core: CoreLine
    settings: dict[str, object]
    report: dict[str, str]  # what its worker says of it


def _show_one(found: CoreReport) -> None:
    _show_list([found.core])
    for title, values in (("", found.settings), ("its worker says", found.report)):
        if values:
            say(f"\n{title}:" if title else "")
        for name, value in values.items():
            if value:
                say(f"{name:<22} {_plain(value)}")


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)


@command(_show_one)
@click.argument("name")
def show(name: str) -> CoreReport:
    """Show one core: its settings, and what its worker says of it. Keys are shown nowhere."""
    config, fleet = current_config(), ask_fleet()
    found = [line for line in core_lines(config, fleet) if line.name == name]
    catalogue = read_file(config)
    if not found:
        catalogue.one(name)  # says that there is none
    core = catalogue.cores.get(name)
    view = fleet.cores.get(name) if fleet is not None else None
    return CoreReport(
        core=found[0],
        settings=msgspec.to_builtins(core) if core is not None else {},
        report=dict(view.card.report) if view is not None else {},
    )


@command(_show_changed)
@click.argument("name")
def remove(name: str) -> Changed:
    """Remove a core. What waits for it goes to another core that its name leads to, or ends.

    What its worker runs is suspended first; it goes on on another core of the same model.
    """
    config = current_config()
    fleet = ask_fleet()
    view = fleet.cores.get(name) if fleet is not None else None
    in_file = name in read_file(config).cores or name in read_file(config).problems
    if in_file or view is None:
        cores_file().remove(name)
    notes = [f"core {name} is removed"]
    if view is not None:
        if not with_kernel(lambda operator: _forgotten(operator, name)):
            notes.append("its worker still ends what it runs; it is forgotten when that is done")
        if view.waiting or view.running:
            notes.append(
                f"{plural(view.waiting + view.running, 'syscall')} waited for it or ran on it: "
                "what named it alone ends, the others go to another core"
            )
    default = [other for other, core in read_file(config).cores.items() if core.default]
    if view is not None and view.card.default and not default:
        other = config.environment_core
        notes.append(f"{other or 'any core'} takes what names no core now")
    return Changed(name, tuple(notes))


async def _forgotten(operator: Operator, name: str) -> bool:
    """Take a core's card away when its workers have left; return whether it is gone in time."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + GONE_LIMIT_S
    while loop.time() < until_s:
        try:
            await operator.control.remove_core(name)
        except UnknownCore:  # the supervisor was faster
            return True
        except InvalidConfig:  # a worker serves it
            await asyncio.sleep(GONE_POLL_S)
        else:
            return True
    return False


@command(_show_changed, name="default")
@click.argument("name")
def default_(name: str) -> Changed:
    """Let a core take what names none."""
    cores_file().make_default(name)
    return Changed(name, (f"{name} takes what names no core",))


def _show_pulled(done: "PullResult") -> None:
    from aios_cli.pull import show_pulled  # noqa: PLC0415  is loaded by now

    show_pulled(done)


@command(_show_pulled)
@click.argument("address")
@click.option("--revision", help="Of the hub's repository: a branch, a tag or a commit.")
@click.option("--sha256", metavar="SUM", help="The checksum that the file has to have.")
@click.option("--name", help="The core's name; without it the file's.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@shared_options
def pull(address: str, **values: object) -> "PullResult":
    """Fetch a GGUF file from the hub or an address, and add a core that runs it.

    Size, licence and place are shown, and you are asked, before it is downloaded. What was cut goes
    on where it ended when the command is run again.

    \b
    Examples:
      aios cores pull hf:ORG/REPO/FILE.gguf --default
      aios cores pull https://files.example.com/model.gguf --sha256 SUM --name small --yes
    """  # noqa: D301 - \b keeps click from wrapping
    from aios_cli.pull import pull_core  # noqa: PLC0415  it brings an HTTP client

    return pull_core(address, values)


for each in (add, pull, list_, show, default_, check, remove):
    cores.add_command(each)
