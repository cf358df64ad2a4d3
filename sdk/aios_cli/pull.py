"""`aios cores pull`: a model file from the hub or an address, and a core that runs it."""

import re
import sys
from collections.abc import Callable, Iterator
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
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from aios_broker.catalogue import catalogue_path
from aios_broker.config import KernelConfig
from aios_broker.contract.cores import LlamaSettings
from aios_broker.contract.errors import InvalidConfig
from aios_cli.session import Interrupted, command, current_config
from aios_local.cores_file import CoresFile
from aios_local.models.address import Address, core_name_of, parse_address
from aios_local.models.download import check_gguf, fetch, web_client, web_offer
from aios_local.models.hub import hub_client, hub_offer
from aios_local.models.offer import Offer
from aios_local.models.place import Place, size_text
from aios_workers.llm.cores.llama.gguf import read_gguf

FOLDER = "models"  # of the state directory
SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")
SHOWN_EACH = 0.1  # of a file, where nobody watches a bar


class Pulled(Struct, frozen=True):
    """What was done."""

    core: str
    gguf: str
    source: str
    licence: str | None
    sha256: dict[str, str]  # by file
    new: bool  # False: all of it was here


def _show(done: Pulled) -> None:
    click.echo(f"{done.gguf} is {'here' if done.new else 'here already'}, its checksum is right")
    click.echo(f"core {done.core} runs it: `aios cores check {done.core}`")


@command(_show)
@click.argument("address")
@click.option("--revision", help="Of the hub's repository: a branch, a tag or a commit.")
@click.option("--sha256", help="The checksum that the file has to have.")
@click.option("--name", help="The core's name; without it the file's.")
@click.option("--alias", "aliases", multiple=True, help="Another name of the core; may be repeated.")
@click.option("--default", "default", is_flag=True, help="Let it take what names no core.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def pull(
    *,
    address: str,
    revision: str | None,
    sha256: str | None,
    name: str | None,
    aliases: tuple[str, ...],
    default: bool,
    yes: bool,
) -> Pulled:
    r"""Fetch a GGUF file and add a core that runs it.

    ADDRESS is hf:ORG/REPO/FILE.gguf, or https://HOST/PATH/FILE.gguf. Size, licence and place are
    shown, and you are asked, before it is downloaded. What was cut goes on when it is run again.

    \b
    Examples:
      aios cores pull hf:ORG/REPO/model-q4_k_m.gguf --default
      aios cores pull https://files.example.com/model.gguf --sha256 SUM --name small --yes
    """
    config = current_config()
    if sha256 is not None and not SHA256.match(sha256):
        raise InvalidConfig("is no SHA-256", field="--sha256", remedy="give its 64 hex digits")
    where = parse_address(address, has_sum=sha256 is not None)
    if revision is not None and where.kind != "hub":
        raise InvalidConfig(
            "is of the hub's repositories alone", field="--revision", remedy="leave it out"
        )
    client = hub_client() if where.kind == "hub" else web_client()
    offer = _offer(client, where, revision, sha256.lower() if sha256 is not None else None)
    core = name or core_name_of(offer.files[0].name)
    places = [Place(_folder(config).joinpath(*offer.folder, one.name)) for one in offer.files]
    settings = LlamaSettings(gguf=str(places[0].path), aliases=aliases, default=default)
    file = CoresFile(catalogue_path(config.state_dir, config.cores))
    is_added = _is_added(file, core, settings)
    _ask(offer, places, core, yes=yes)
    with _progress() as on_bytes, _kept_on_interrupt():
        fetched = [
            fetch(client, one, place, offer.source, on_bytes)
            for one, place in zip(offer.files, places, strict=True)
        ]
    read_gguf(places[0].path)
    if not is_added:
        file.add(core, settings)
    return Pulled(
        core=core,
        gguf=str(places[0].path),
        source=offer.source,
        licence=offer.licence,
        sha256={one.path.name: one.sha256 for one in fetched},
        new=any(one.new for one in fetched),
    )


def _folder(config: KernelConfig) -> Path:
    return (config.models or config.state_dir / FOLDER).expanduser().absolute()


def _offer(
    client: httpx.Client, where: Address, revision: str | None, sha256: str | None
) -> Offer:
    if where.kind == "web":
        return web_offer(client, where, sha256)
    offer = hub_offer(where, revision)
    first = offer.files[0]
    if sha256 is not None and first.sha256 != sha256:
        raise InvalidConfig(
            f"the hub's checksum of {first.name} is {first.sha256 or 'not published'}",
            field="--sha256",
            remedy="see who gave you the other one",
        )
    check_gguf(client, first)
    return offer


def _is_added(file: CoresFile, core: str, settings: LlamaSettings) -> bool:
    """Tell whether the core is there already, on this file; refuse a name that is another's."""
    catalogue = file.read()
    found = catalogue.cores.get(core)
    if found is None:
        file.check_addition(core, settings)
        return False
    if isinstance(found, LlamaSettings) and found.gguf == settings.gguf:
        return True
    raise InvalidConfig(
        f"there is a core {core} already", field="--name", remedy="give it another name"
    )


def _ask(offer: Offer, places: list[Place], core: str, *, yes: bool) -> None:
    sizes = size_text(offer.size_bytes)
    lines = {
        "from": offer.source,
        "size": sizes if len(places) == 1 else f"{sizes}, {len(places)} files",
        "licence": offer.licence or "not said",
        "sha256": offer.files[0].sha256 or "not published; computed and kept",
        "to": str(places[0].path),
        "core": core,
    }
    for label, value in lines.items():
        click.echo(f"{label:<8} {value}", err=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidConfig("nobody is there to be asked", field="--yes", remedy="give --yes")
    if not click.confirm("Download it?", err=True):
        raise click.Abort


@contextmanager
def _kept_on_interrupt() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\nstopped; what has come is kept: the same command goes on", err=True)
        raise Interrupted from None


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Show on standard error how far a download is: a bar, or a line now and then."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines().show
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as bars:
        tasks = {}

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
        tenth = int(so_far / of / SHOWN_EACH) if of else 0
        if self._shown.get(name) != tenth:
            self._shown[name] = tenth
            click.echo(f"{name}: {size_text(so_far)} of {size_text(of)}", err=True)
