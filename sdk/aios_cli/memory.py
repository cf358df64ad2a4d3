"""`aios memory`: an agent's notes."""

from __future__ import annotations

import click

from aios_broker.contract import memory as bodies
from aios_broker.contract.names import GrantVerbs, SearchMode
from aios_cli.session import EXIT_CODES
from aios_cli.state_syscall import as_agent, text_or_stdin

_owner = click.option("--owner", help="Another agent, whose notes they are.")
_tags = click.option("--tag", "tags", multiple=True, help="Labels; may be given several times.")
_group = click.option("--group", help="A privilege group.")
_to = click.option("--to", "to_agent", metavar="AGENT", help="An agent.")


@click.group(epilog=EXIT_CODES)
def memory() -> None:
    """Keep, find and share the notes of an agent.

    \b
    Examples:
      aios memory add "The launch is on 3 May" --tag launch --agent ada
      aios memory search "when do we start?" --agent ada
      aios memory share --group team --agent ada
    """  # noqa: D301 - \b keeps click from wrapping


@memory.command()
@click.argument("content")
@_tags
@click.option("--keyword", "keywords", multiple=True, help="What it is about.")
@click.option("--category", default="", help="Its category.")
@click.option("--context", default="", help="One line on what it is about.")
@click.option("--ttl-s", type=float, help="It expires after so long.")
@click.option("--evolve", is_flag=True, help="Let a model label and link it.")
@click.option("--core", help="Whose model does that.")
@as_agent
def add(  # noqa: PLR0913  one argument per option
    content: str,
    tags: tuple[str, ...],
    keywords: tuple[str, ...],
    category: str,
    context: str,
    ttl_s: float | None,
    core: str | None,
    *,
    evolve: bool,
) -> bodies.MemoryAdd:
    """Add a note; CONTENT `-` reads it from standard input."""
    return bodies.MemoryAdd(
        text_or_stdin(content),
        keywords,
        tags,
        category,
        context,
        ttl_s=ttl_s,
        evolve=evolve,
        core=core,
    )


@memory.command()
@click.argument("note")
@_owner
@click.option("--version", type=int, help="An older version.")
@as_agent
def get(note: str, owner: str | None, version: int | None) -> bodies.MemoryGet:
    """Show a note."""
    return bodies.MemoryGet(note, owner, version)


@memory.command()
@click.argument("note")
@click.argument("content")
@_owner
@click.option("--if-version", type=int, help="Only if it is of this version still.")
@as_agent
def update(
    note: str, content: str, owner: str | None, if_version: int | None
) -> bodies.MemoryUpdate:
    """Give a note other content; the old version is kept."""
    return bodies.MemoryUpdate(note, owner, text_or_stdin(content), if_version=if_version)


@memory.command()
@click.argument("note")
@_owner
@as_agent
def remove(note: str, owner: str | None) -> bodies.MemoryRemove:
    """Delete a note and its versions, when a person allowed it."""
    return bodies.MemoryRemove(note, owner)


@memory.command(name="list")
@_owner
@_tags
@click.option("--category", help="Only of this category.")
@click.option("--limit", type=int, default=100, show_default=True, help="At most so many.")
@click.option("--after", help="The last one of the page before.")
@as_agent
def list_(
    owner: str | None, tags: tuple[str, ...], category: str | None, limit: int, after: str | None
) -> bodies.MemoryList:
    """List notes, oldest first."""
    return bodies.MemoryList(owner, tags, category, limit, after)


@memory.command()
@click.argument("query")
@click.option("-k", type=int, default=10, show_default=True, help="At most so many.")
@click.option(
    "--mode",
    type=click.Choice(["hybrid", "semantic", "keyword"]),
    default="hybrid",
    show_default=True,
    help="By meaning, by words, or by both.",
)
@_owner
@click.option("--shared", is_flag=True, help="Also among what others share.")
@_tags
@as_agent
def search(
    query: str, k: int, mode: SearchMode, owner: str | None, tags: tuple[str, ...], *, shared: bool
) -> bodies.MemorySearch:
    """Find notes, best first."""
    return bodies.MemorySearch(query, k, mode, owner, shared, tags)


@memory.command()
@click.argument("query")
@click.option("--max-tokens", type=int, default=512, show_default=True, help="Of the text.")
@click.option("--shared", is_flag=True, help="Also of what others share.")
@click.option("--core", help="Count tokens as this core does; else they are estimated.")
@as_agent
def context(query: str, max_tokens: int, core: str | None, *, shared: bool) -> bodies.MemoryContext:
    """Print what is worth recalling, as one text for a prompt."""
    return bodies.MemoryContext(query, max_tokens, shared, core)


@memory.command()
@click.argument("note")
@_owner
@as_agent
def history(note: str, owner: str | None) -> bodies.MemoryHistory:
    """List a note's versions, newest first."""
    return bodies.MemoryHistory(note, owner)


@memory.command()
@click.argument("note")
@click.argument("version", type=int)
@_owner
@as_agent
def rollback(note: str, version: int, owner: str | None) -> bodies.MemoryRollback:
    """Make an older VERSION of a note the newest one."""
    return bodies.MemoryRollback(note, version, owner)


@memory.command()
@click.argument("syscall")
@as_agent
def undo(syscall: str) -> bodies.MemoryUndo:
    """Take back what an evolution, by its SYSCALL's id, did to other notes."""
    return bodies.MemoryUndo(syscall)


@memory.command()
@as_agent
def clear() -> bodies.MemoryClear:
    """Delete all notes of the agent, when a person allowed it."""
    return bodies.MemoryClear()


@memory.command()
@click.argument("note", required=False)
@_group
@_to
@click.option(
    "--verb",
    "verbs",
    multiple=True,
    default=("read", "search"),
    show_default=True,
    help="read, write, search, share, administer.",
)
@click.option("--ttl-s", type=float, help="For so long.")
@as_agent
def share(
    note: str | None,
    group: str | None,
    to_agent: str | None,
    verbs: GrantVerbs,
    ttl_s: float | None,
) -> bodies.MemoryShare:
    """Share a NOTE, or without one all notes, with a group or an agent."""
    return bodies.MemoryShare(note, group, to_agent, verbs, ttl_s)


@memory.command()
@click.argument("note", required=False)
@_group
@_to
@as_agent
def unshare(note: str | None, group: str | None, to_agent: str | None) -> bodies.MemoryUnshare:
    """Take that back, when a person allowed it."""
    return bodies.MemoryUnshare(note, group, to_agent)


@memory.command()
@click.option(
    "--bytes",
    "size_bytes",
    type=int,
    default=bodies.DEFAULT_BLOCK_BYTES,
    show_default=True,
    help="Of the block in Redis.",
)
@click.option("-k", type=int, default=2, show_default=True, help="Of LRU-K.")
@click.option(
    "--correlated-s",
    type=float,
    default=1.0,
    show_default=True,
    help="References so close are one.",
)
@click.option("--high", type=float, default=0.8, show_default=True, help="Swap from here ...")
@click.option("--low", type=float, default=0.6, show_default=True, help="... down to here.")
@as_agent
def alloc(
    size_bytes: int, k: int, correlated_s: float, high: float, low: float
) -> bodies.MemoryAlloc:
    """Set the size of the agent's block, and how notes are chosen to leave it."""
    return bodies.MemoryAlloc(size_bytes, k, correlated_s, high, low)


@memory.command()
@as_agent
def stat() -> bodies.MemoryStat:
    """Show the block's size and counters."""
    return bodies.MemoryStat()
