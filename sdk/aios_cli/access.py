"""`aios groups` and `aios grants`: who may do what with what is another's."""

from __future__ import annotations

import click

from aios_broker.contract import access as bodies
from aios_broker.contract.names import GrantVerbs, Verb
from aios_cli.session import EXIT_CODES
from aios_cli.state_syscall import as_agent

_kind = click.argument("kind", type=click.Choice(["block", "note", "file", "directory"]))
_name = click.argument("name", default="")
_owner = click.option("--owner", help="Another agent, whose it is.")
_group = click.option("--group", help="A privilege group.")
_to = click.option("--to", "to_agent", metavar="AGENT", help="An agent.")


@click.group(epilog=EXIT_CODES)
def groups() -> None:
    """Show and change privilege groups.

    \b
    Examples:
      aios groups create team --agent ada
      aios groups add team bob --agent ada
    """  # noqa: D301 - \b keeps click from wrapping


@groups.command(name="list")
@as_agent
def list_groups() -> bodies.AccessGroups:
    """List the groups of the tenant with their members."""
    return bodies.AccessGroups()


@groups.command()
@click.argument("group")
@as_agent
def create(group: str) -> bodies.AccessGroupCreate:
    """Make a group; its first administrator is who makes it."""
    return bodies.AccessGroupCreate(group)


@groups.command()
@click.argument("group")
@as_agent
def delete(group: str) -> bodies.AccessGroupDelete:
    """Delete a group and all grants to it, when a person allowed it."""
    return bodies.AccessGroupDelete(group)


@groups.command()
@click.argument("group")
@click.argument("member")
@click.option("--admin", is_flag=True, help="As an administrator of the group.")
@as_agent
def add(group: str, member: str, *, admin: bool) -> bodies.AccessGroupAdd:
    """Put an agent into a group, when a person allowed it."""
    return bodies.AccessGroupAdd(group, member, "admin" if admin else "member")


@groups.command()
@click.argument("group")
@click.argument("member")
@as_agent
def remove(group: str, member: str) -> bodies.AccessGroupRemove:
    """Take an agent out of a group, when a person allowed it."""
    return bodies.AccessGroupRemove(group, member)


@click.group(epilog=EXIT_CODES)
def grants() -> None:
    """Show and change grants on an agent's notes and files.

    KIND is block (all notes), note, file or directory; NAME a note's id or a path.

    \b
    Examples:
      aios grants give directory plans --to bob --verb read --agent ada
      aios grants list --held --agent bob
      aios grants check file plans/a.txt write --owner ada --agent bob
    """  # noqa: D301 - \b keeps click from wrapping


@grants.command(name="list")
@click.option("--held", is_flag=True, help="Those that it holds on others' objects.")
@as_agent
def list_grants(*, held: bool) -> bodies.AccessGrants:
    """List the grants on the agent's objects."""
    return bodies.AccessGrants(held)


@grants.command()
@_kind
@_name
@_owner
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
def give(  # noqa: PLR0913  one argument per option
    kind: bodies.ObjectKind,
    name: str,
    owner: str | None,
    group: str | None,
    to_agent: str | None,
    verbs: GrantVerbs,
    ttl_s: float | None,
) -> bodies.AccessGrant:
    """Let an agent or a group do something with an object."""
    return bodies.AccessGrant(bodies.ObjectRef(kind, name, owner), verbs, to_agent, group, ttl_s)


@grants.command()
@_kind
@_name
@_owner
@_group
@_to
@as_agent
def take(
    kind: bodies.ObjectKind, name: str, owner: str | None, group: str | None, to_agent: str | None
) -> bodies.AccessRevoke:
    """Take grants back, when a person allowed it."""
    return bodies.AccessRevoke(bodies.ObjectRef(kind, name, owner), to_agent, group)


@grants.command()
@_kind
@click.argument("name")
@click.argument("verb", type=click.Choice(["read", "write", "search", "share", "administer"]))
@_owner
@as_agent
def check(kind: bodies.ObjectKind, name: str, verb: Verb, owner: str | None) -> bodies.AccessCheck:
    """Tell whether the agent may do something, and why."""
    return bodies.AccessCheck(bodies.ObjectRef(kind, "" if kind == "block" else name, owner), verb)
