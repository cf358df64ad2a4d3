"""`aios cores pull`: a model file from the hub or an address, and a core that runs it."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import httpx
from msgspec import Struct
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from aios_broker.config import KernelConfig
from aios_broker.contract.cores import Core, LlamaSettings
from aios_broker.contract.errors import InvalidConfig
from aios_cli.cores import add_core, core_of_options, cores_file
from aios_cli.session import Interrupted, current_config
from aios_cli.tables import say
from aios_local.models.address import (
    Address,
    HubAddress,
    WebAddress,
    core_name_of,
    parse_address,
)
from aios_local.models.download import Download, DownloadResult, check_gguf, web_client, web_model
from aios_local.models.hub import hub_client, hub_model
from aios_local.models.local_file import LocalFile, size_text
from aios_local.models.remote_model import RemoteModel
from aios_local.supervisor.cores import name_is_taken

FOLDER = "models"  # of the state directory
SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")
LINES_PER_FILE = 10  # where nobody watches a bar


class PullResult(Struct, frozen=True):
    """What `aios cores pull` has done."""

    core: str
    gguf: str
    source: str
    licence: str | None
    sha256: dict[str, str]  # by file
    new: bool  # False: all of it was here
    notes: tuple[str, ...]  # on the core that was added; none where it was here, too


def show_pulled(done: PullResult) -> None:
    """Print what was done."""
    say(f"{done.gguf} is {'here' if done.new else 'here already'}, with the right checksum")
    say(f"core {done.core} runs it")
    for note in done.notes:
        say(note)


def pull_core(address: str, values: Mapping[str, object]) -> PullResult:
    """Fetch what is at an address, after asking, and add a core that runs it.

    Raises:
        InvalidConfig: An option or the address will not do, or nobody can be asked.
        NotFound, AccessDenied, DownloadFailed, AlreadyExists: It cannot be had.
        Interrupted: Ctrl-C; what has come is kept.
    """
    options = dict(values)
    revision, sha256, name = (options.pop(one) for one in ("revision", "sha256", "name"))
    yes = bool(options.pop("yes"))
    wanted = _sum_of(sha256)
    where = parse_address(address, has_sum=wanted is not None)
    if revision is not None and not isinstance(where, HubAddress):
        raise InvalidConfig(
            "is of the hub's repositories alone", field="--revision", remedy="leave it out"
        )
    config = current_config()
    with hub_client() if isinstance(where, HubAddress) else web_client() as client:
        model = _offer(client, where, revision, wanted)
        core = str(name) if name is not None else core_name_of(model.files[0].name)
        files = [
            LocalFile(_folder(config).joinpath(*model.folder, one.name)) for one in model.files
        ]
        settings = core_of_options(core, {**options, "gguf": str(files[0].path)})
        is_added = _is_added(core, settings)
        _ask(model, files, core, yes=yes)
        fetched = _fetch_all(client, model, files)
    return PullResult(
        core=core,
        gguf=str(files[0].path),
        source=model.source,
        licence=model.licence,
        sha256={one.path.name: one.sha256 for one in fetched},
        new=any(one.new for one in fetched),
        notes=() if is_added else add_core(core, settings).notes,
    )


def _sum_of(said: object) -> str | None:
    if said is None:
        return None
    if not SHA256.match(str(said)):
        raise InvalidConfig("is no SHA-256", field="--sha256", remedy="give its 64 hex digits")
    return str(said).lower()


def _folder(config: KernelConfig) -> Path:
    return (config.models or config.state_dir / FOLDER).expanduser().absolute()


def _offer(
    client: httpx.Client, where: Address, revision: object, sha256: str | None
) -> RemoteModel:
    if isinstance(where, WebAddress):
        return web_model(client, where, sha256)
    model = hub_model(where, str(revision) if revision is not None else None)
    first = model.files[0]
    if sha256 is not None and first.sha256 != sha256:
        raise InvalidConfig(
            f"the hub's checksum of {first.name} is {first.sha256 or 'not published'}",
            field="--sha256",
            remedy="see who gave you the other one",
        )
    check_gguf(client, first)
    return model


def _is_added(name: str, core: Core) -> bool:
    """Tell whether the core is there already, on this file; refuse what cannot be added."""
    if name == current_config().environment_core:
        raise name_is_taken(name)
    file = cores_file()
    found = file.read().cores.get(name)
    if isinstance(found, LlamaSettings) and found.gguf == getattr(core, "gguf", None):
        return True
    file.check_addition(name, core)
    return False


def _ask(model: RemoteModel, files: Sequence[LocalFile], core: str, *, yes: bool) -> None:
    sizes = size_text(model.size_bytes)
    lines = {
        "from": model.source,
        "size": sizes if len(files) == 1 else f"{sizes}, {len(files)} files",
        "licence": model.licence or "not said",
        "sha256": model.files[0].sha256 or "not published; computed and kept",
        "to": str(files[0].path),
        "core": core,
    }
    for label, value in lines.items():
        say(f"{label:<8} {value}", err=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidConfig("nobody is there to be asked", field="--yes", remedy="give --yes")
    if not click.confirm("Download it?", err=True):
        raise click.Abort


def _fetch_all(
    client: httpx.Client, model: RemoteModel, files: Sequence[LocalFile]
) -> list[DownloadResult]:
    try:
        with _progress() as on_bytes:
            download = Download(client, model.source, on_bytes)
            return [download.fetch(*pair) for pair in zip(model.files, files, strict=True)]
    except KeyboardInterrupt:
        say("\nstopped; what has come is kept: the same command goes on", err=True)
        raise Interrupted from None


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Show on standard error how far a download is: a bar, or a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines().show
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, so_far: int, of: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=of)
            bars.update(tasks[name], completed=so_far, total=of)

        yield show


class _Lines:
    """Progress as lines, ten for a file."""

    def __init__(self) -> None:
        self._shown: dict[str, int] = {}

    def show(self, name: str, so_far: int, of: int | None) -> None:
        part = so_far * LINES_PER_FILE // of if of else 0
        if self._shown.get(name) != part:
            self._shown[name] = part
            say(f"{name}: {size_text(so_far)} of {size_text(of)}", err=True)
