"""Whether a request of a tool is one that its rules name. Pure; what no rule names is refused.

A rule's host is `api.example.org`, `*.example.org` (each name below it, not itself), with `:PORT`
where it is not the usual one. HTTPS is meant, unless it begins with `http://`.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_to_bytes

from aios_broker.contract.tools import NetworkRule

Scheme = Literal["http", "https"]
PORTS: dict[Scheme, int] = {"https": 443, "http": 80}
MOST_DECODINGS = 4  # a path that is still another one after so many is refused
_NAME = re.compile(
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
)
_NUMBER = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_NAME = 253


class Refused(Exception):
    """A request that is not let through; the message says why, and is told to the tool."""

    def __init__(self, why: str, status: int = 403) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request goes."""

    scheme: Scheme
    host: str  # as `host_of` writes it
    port: int

    @property
    def authority(self) -> str:
        """Return it as a `Host` header has it."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == PORTS[self.scheme] else f"{name}:{self.port}"


def origin_of(scheme: Scheme, authority: str) -> Origin:
    """Return where `HOST` or `HOST:PORT` leads.

    Raises:
        Refused: It is no such thing, or an address in a spelling that is not the usual one.
    """
    found = re.fullmatch(r"(\[[^\]@]*\]|[^:@/?#\[\]]*)(?::([0-9]{1,5}))?", authority)
    if found is None:
        raise Refused(f"{authority!r} is no host", 400)
    port = int(found[2]) if found[2] else PORTS[scheme]
    if not 0 < port < 1 << 16:
        raise Refused(f"{port} is no port", 400)
    return Origin(scheme, host_of(found[1]), port)


def host_of(text: str) -> str:
    """Return a host in the one spelling by which hosts are compared.

    Raises:
        Refused: It is no host, or could be taken for another one by somebody.
    """
    if text.startswith("["):
        try:
            if not text.endswith("]") or "%" in text:
                raise ValueError(text)
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError as error:
            raise Refused(f"{text!r} is no address", 400) from error
    name = text.lower().removesuffix(".")
    if not name.isascii() or len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise Refused(f"{text!r} is no host name", 400)
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError as error:
            raise Refused(f"{text!r} is an address in an unusual spelling", 400) from error
    return name


@dataclass(frozen=True, slots=True)
class HostPattern:
    """The hosts that a rule names."""

    scheme: Scheme
    host: str
    port: int
    below: bool  # every name below it, and not itself

    def names(self, origin: Origin) -> bool:
        """Whether a request goes to one of them."""
        if (self.scheme, self.port) != (origin.scheme, origin.port):
            return False
        if self.below:
            return origin.host.endswith(f".{self.host}")
        return origin.host == self.host


def pattern_of(text: str) -> HostPattern:
    """Return the hosts that a rule's `host` names.

    Raises:
        Refused: It names none.
    """
    scheme: Scheme = "https"
    if text.startswith("http://"):
        scheme, text = "http", text.removeprefix("http://")
    text = text.removeprefix("https://")
    below = text.startswith("*.")
    origin = origin_of(scheme, text.removeprefix("*."))
    if below and _is_number(origin.host):
        raise Refused(f"{text!r}: there is nothing below an address", 400)
    return HostPattern(scheme, origin.host, origin.port, below)


def rule_for(rules: Iterable[NetworkRule], origin: Origin, method: str, path: str) -> NetworkRule:
    """Return the first rule that names a request.

    Args:
        rules: Those of the tool.
        origin: Where it goes.
        method: In capitals.
        path: Without the query.

    Raises:
        Refused: None does.
    """
    reached = [rule for rule in rules if pattern_of(rule.host).names(origin)]
    if not reached:
        raise Refused(f"no rule of this tool names {origin.scheme}://{origin.authority}")
    reached = [rule for rule in reached if method in rule.methods]
    if not reached:
        raise Refused(f"no rule of this tool allows {method} at {origin.authority}")
    for rule in reached:
        if "/" in rule.paths or any(_is_below(path, prefix) for prefix in rule.paths):
            return rule
    raise Refused(f"no rule of this tool allows this path at {origin.authority}")


def wrong_rule(rules: Sequence[NetworkRule], secrets: Sequence[str]) -> str | None:
    """Return what is wrong with the rules of a tool; None: nothing."""
    for name in secrets:
        if not _VARIABLE.fullmatch(name):
            return f"the secret {name!r} is to have the name of a variable, such as API_KEY"
    for rule in rules:
        try:
            pattern_of(rule.host)
        except Refused as error:
            return f"the host of a network rule: {error}"
        if any(method != method.upper() or not method.isalpha() for method in rule.methods):
            return f"the methods of the rule for {rule.host} are to be in capitals, such as GET"
        if any(not path.startswith("/") for path in rule.paths):
            return f"the paths of the rule for {rule.host} are to begin with /"
        if unknown := set(rule.secrets) - set(secrets):
            return f"the rule for {rule.host} uses {min(unknown)}, which `secrets` does not name"
    return None


def _is_below(path: str, prefix: str) -> bool:
    return _is_plain(path) and (path == prefix or path.startswith(prefix.rstrip("/") + "/"))


def _is_plain(path: str) -> bool:
    """Whether a path is one for whoever reads it: no `..` and no hidden slash, however written."""
    data = path.encode()
    for _ in range(MOST_DECODINGS):
        parts = data.split(b"/")[1:]
        if b"\\" in data or b";" in data or any(part in (b".", b"..") for part in parts):
            return False
        if b"" in parts[:-1] or any(byte < 0x20 for byte in data):
            return False
        decoded = unquote_to_bytes(data)
        if decoded.count(b"/") != data.count(b"/"):
            return False
        if decoded == data:
            return True
        data = decoded
    return False


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
