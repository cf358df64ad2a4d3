"""`aios files`: an agent's files."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import click

from aios_broker.contract import storage as bodies
from aios_broker.contract.names import GrantVerbs, SearchMode
from aios_cli.session import EXIT_CODES
from aios_cli.state_syscall import as_agent

_owner = click.option("--owner", help="Another agent, whose namespace it is.")
_from = click.option(
    "--from",
    "source",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Take the content from this file of this machine; `-`: standard input.",
)


@click.group(epilog=EXIT_CODES)
def files() -> None:
    """Read, change, find and share the files of an agent.

    \b
    Examples:
      aios files write notes/plan.md "Buy milk" --agent ada
      aios files write report.pdf --from report.pdf --agent ada
      aios files search "shopping" --agent ada
      aios files rollback notes/plan.md --version 1 --agent ada
    """  # noqa: D301 - \b keeps click from wrapping


def _content(text: str | None, source: str | None) -> tuple[str, bodies.Encoding]:
    if (text is None) == (source is None):
        raise click.UsageError("give CONTENT or --from FILE")
    if source is None:
        return text or "", "utf-8"
    data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(data).decode(), "base64"


@files.command()
@click.argument("path")
@click.argument("content", required=False)
@_from
@_owner
@as_agent
def create(
    path: str, content: str | None, source: str | None, owner: str | None
) -> bodies.StorageCreate:
    """Make a new file."""
    return bodies.StorageCreate(path, *_content(content, source), owner=owner)


@files.command()
@click.argument("path")
@click.option("--version", type=int, help="An older version.")
@_owner
@as_agent
def read(path: str, version: int | None, owner: str | None) -> bodies.StorageRead:
    """Print a file, byte for byte."""
    return bodies.StorageRead(path, version, owner=owner)


@files.command()
@click.argument("path")
@click.argument("content", required=False)
@_from
@click.option("--if-version", type=int, help="Only if it is of this version; 0: only a new one.")
@_owner
@as_agent
def write(
    path: str, content: str | None, source: str | None, if_version: int | None, owner: str | None
) -> bodies.StorageWrite:
    """Replace a file's content, or make the file; a person may be asked first."""
    return bodies.StorageWrite(path, *_content(content, source), if_version, owner=owner)


@files.command()
@click.argument("path")
@click.argument("content", required=False)
@_from
@_owner
@as_agent
def append(
    path: str, content: str | None, source: str | None, owner: str | None
) -> bodies.StorageAppend:
    """Add to the end of a file."""
    return bodies.StorageAppend(path, *_content(content, source), owner=owner)


@files.command()
@click.argument("path", default="/")
@click.option("--recursive", "-r", is_flag=True, help="With all below.")
@click.option("--limit", type=int, default=1_000, show_default=True, help="At most so many.")
@click.option("--after", help="The last one of the page before.")
@_owner
@as_agent
def ls(
    path: str, limit: int, after: str | None, owner: str | None, *, recursive: bool
) -> bodies.StorageList:
    """List a directory."""
    return bodies.StorageList(path, recursive, limit, after, owner=owner)


@files.command()
@click.argument("path")
@_owner
@as_agent
def stat(path: str, owner: str | None) -> bodies.StorageStat:
    """Show what is known of a file or a directory."""
    return bodies.StorageStat(path, owner=owner)


@files.command()
@click.argument("path")
@click.argument("to")
@click.option("--overwrite", is_flag=True, help="Over a file that is there.")
@_owner
@as_agent
def mv(path: str, to: str, owner: str | None, *, overwrite: bool) -> bodies.StorageMove:
    """Move or rename."""
    return bodies.StorageMove(path, to, overwrite, owner=owner)


@files.command()
@click.argument("path")
@click.argument("to")
@click.option("--overwrite", is_flag=True, help="Over a file that is there.")
@_owner
@as_agent
def cp(path: str, to: str, owner: str | None, *, overwrite: bool) -> bodies.StorageCopy:
    """Copy, without history; with --owner from another agent's namespace into one's own."""
    return bodies.StorageCopy(path, to, overwrite, owner=owner)


@files.command()
@click.argument("path")
@click.option("--recursive", "-r", is_flag=True, help="A directory with all below.")
@_owner
@as_agent
def rm(path: str, owner: str | None, *, recursive: bool) -> bodies.StorageDelete:
    """Delete, when a person allowed it."""
    return bodies.StorageDelete(path, recursive, owner=owner)


@files.command()
@click.argument("path")
@_owner
@as_agent
def mkdir(path: str, owner: str | None) -> bodies.StorageMkdir:
    """Make a directory and those above it."""
    return bodies.StorageMkdir(path, owner=owner)


@files.command()
@click.argument("query")
@click.option("-k", type=int, default=10, show_default=True, help="At most so many.")
@click.option(
    "--mode",
    type=click.Choice(["hybrid", "semantic", "keyword"]),
    default="hybrid",
    show_default=True,
    help="By meaning, by words, or by both.",
)
@click.option("--path", default="/", show_default=True, help="Only below this.")
@click.option(
    "--by",
    "group_by",
    type=click.Choice(["file", "directory"]),
    default="file",
    show_default=True,
    help="One hit for each of these.",
)
@_owner
@click.option("--shared", is_flag=True, help="Also among what others share.")
@as_agent
def search(  # noqa: PLR0913  one argument per option
    query: str,
    k: int,
    mode: SearchMode,
    path: str,
    group_by: str,
    owner: str | None,
    *,
    shared: bool,
) -> bodies.StorageSearch:
    """Find files, best first."""
    by: bodies.GroupBy = "directory" if group_by == "directory" else "file"
    return bodies.StorageSearch(query, k, mode, path, by, shared, owner=owner)


@files.command()
@click.argument("path")
@_owner
@as_agent
def versions(path: str, owner: str | None) -> bodies.StorageVersions:
    """List a file's versions, newest first."""
    return bodies.StorageVersions(path, owner=owner)


@files.command()
@click.argument("path")
@click.argument("a", type=int)
@click.argument("b", type=int, required=False)
@_owner
@as_agent
def diff(path: str, a: int, b: int | None, owner: str | None) -> bodies.StorageDiff:
    """Show what changed from version A to version B (the newest)."""
    return bodies.StorageDiff(path, a, b, owner=owner)


@files.command()
@click.argument("path")
@click.option("--version", type=int, help="By its number.")
@click.option("--at", type=float, help="As it was at this Unix time, s.")
@_owner
@as_agent
def rollback(
    path: str, version: int | None, at: float | None, owner: str | None
) -> bodies.StorageRollback:
    """Make an older version the newest one."""
    return bodies.StorageRollback(path, version, at, owner=owner)


@files.command()
@click.argument("path")
@click.option("--group", help="With a privilege group.")
@click.option("--to", "to_agent", metavar="AGENT", help="With an agent.")
@click.option("--link", is_flag=True, help="By a link that reads one file.")
@click.option(
    "--verb",
    "verbs",
    multiple=True,
    default=("read", "search"),
    show_default=True,
    help="read, write, search, share, administer.",
)
@click.option("--ttl-s", type=float, help="For so long; a link: a day.")
@as_agent
def share(
    path: str,
    group: str | None,
    to_agent: str | None,
    verbs: GrantVerbs,
    ttl_s: float | None,
    *,
    link: bool,
) -> bodies.StorageShare:
    """Share a file or a directory."""
    return bodies.StorageShare(path, group, to_agent, link, verbs, ttl_s)


@files.command()
@click.argument("path")
@click.option("--group", help="With a privilege group.")
@click.option("--to", "to_agent", metavar="AGENT", help="With an agent.")
@as_agent
def unshare(path: str, group: str | None, to_agent: str | None) -> bodies.StorageUnshare:
    """Take that back, links too, when a person allowed it."""
    return bodies.StorageUnshare(path, group, to_agent)


@files.command(name="open")
@click.argument("link")
@as_agent
def open_(link: str) -> bodies.StorageOpen:
    """Print the file that a link reads."""
    return bodies.StorageOpen(link)


@files.command()
@click.argument("path")
@click.option("--ttl-s", type=float, default=60.0, show_default=True, help="For so long.")
@_owner
@as_agent
def lock(path: str, ttl_s: float, owner: str | None) -> bodies.StorageLock:
    """Keep others from changing a file."""
    return bodies.StorageLock(path, ttl_s, owner=owner)


@files.command()
@click.argument("path")
@_owner
@as_agent
def unlock(path: str, owner: str | None) -> bodies.StorageUnlock:
    """Let others change it again."""
    return bodies.StorageUnlock(path, owner=owner)


@files.command()
@click.argument("path")
@click.argument("source")
@click.option("--writable", is_flag=True, help="May be changed, too.")
@click.option("--searchable", is_flag=True, help="Its texts are found by `aios files search`.")
@as_agent
def mount(path: str, source: str, *, writable: bool, searchable: bool) -> bodies.StorageMount:
    """Show the directory SOURCE of the worker's host at PATH."""
    return bodies.StorageMount(path, source, writable, searchable)


@files.command()
@click.argument("path")
@as_agent
def unmount(path: str) -> bodies.StorageUnmount:
    """Take a mounted directory out of the namespace."""
    return bodies.StorageUnmount(path)


@files.command()
@click.argument("instruction")
@click.option("--dry-run", is_flag=True, help="Show the plan and do nothing.")
@click.option("--core", help="Whose model plans.")
@as_agent
def operate(instruction: str, core: str | None, *, dry_run: bool) -> bodies.StorageOperate:
    """Do what a sentence says: a model plans, the kernel checks and runs the plan."""
    return bodies.StorageOperate(instruction, dry_run, core)
