"""`aios ui`: log in to the kernel's page on this machine, without handling a token."""

import getpass
import sys
import time
import webbrowser
from dataclasses import dataclass

import click

from aios_broker.config import environment
from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.names import check_name
from aios_broker.contract.tokens import digest
from aios_broker.queues.page_links import LINK_S, PageLink, PageLinks
from aios_broker.queues.tokens import Identity
from aios_broker.views.words import seconds
from aios_cli.session import Operator, command, find_kernel
from aios_cli.tables import say
from aios_cli.tokens import note_token

LOGIN_S = 12 * 3600
_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")


@dataclass(frozen=True, slots=True)
class Link:
    """A link that logs in once."""

    url: str
    opened: bool
    expires_in_s: float = LINK_S


def _show(link: Link) -> None:
    say(link.url)
    say(f"It works once, within {seconds(link.expires_in_s)}.", err=True)


@command(_show)
@click.option("--name", help="Who you are in the audit log; without it, your user's name.")
@click.option("--url", help="The API's address; without it, that of the kernel on this machine.")
@click.option("--no-open", is_flag=True, help="Print the link, and open no browser.")
async def ui(operator: Operator, name: str | None, url: str | None, *, no_open: bool) -> Link:
    """Open the kernel's page as an operator, logged in for twelve hours.

    The link that it prints works once, within two minutes. Who has none, on another machine, logs
    in with a token: `aios agents token NAME --operator`, or an agent's own.

    \b
    Examples:
      aios ui
      aios ui --no-open --name olga
    """  # noqa: D301 - \b keeps click from wrapping
    address = url or find_kernel().api_url
    if address is None:
        raise InvalidConfig(
            "the address of the API is not known here",
            field="--url",
            remedy="name it; or start a kernel with its API: `aios up`",
        )
    who = name or getpass.getuser()
    check_name("name", who)
    who = f"operator:{who}"
    link = PageLink()
    await note_token(who, "", digest(link.token), LOGIN_S)
    at = await offer(operator, link, who, address)
    return Link(at, not no_open and _has_display() and webbrowser.open(at))


async def offer(operator: Operator, link: PageLink, who: str, address: str) -> str:
    """Let a link log in as an operator of the API at an address; return where it leads."""
    identity = Identity(who, "", time.time() + LOGIN_S, "operator")
    await PageLinks(operator.connection, operator.keys).offer(link, identity)
    return f"{address.rstrip('/')}/login/link?key={link.key}"


def _has_display() -> bool:
    """Whether a browser would have a window; elsewhere one in the terminal might be started."""
    return sys.platform == "darwin" or any(environment().get(name) for name in _DISPLAYS)
