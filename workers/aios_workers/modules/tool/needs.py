"""What a call of a tool needs beside a slot: a place at the tool, and its locks.

The name of a lock is its template with the call's arguments in it. What cannot stand in a job's
record, such as a path with spaces, is named by its first part and a digest of all of it.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.names import Name
from aios_broker.contract.syscall import Need
from aios_broker.contract.tools import ToolCard

SHOWN = 80  # characters of a lock that are kept to be read, where it has a digest
DIGEST_DIGITS = 32
_PLACE = re.compile(r"\{([^{}]*)\}")
_UNFIT = re.compile(r"[^A-Za-z0-9._:@/-]")


def needs_of(card: ToolCard, arguments: Mapping[str, Any]) -> tuple[Need, ...]:
    """Return what a call with these arguments needs."""
    locks = dict.fromkeys(_lock(template, card, arguments) for template in card.locks)
    return (Need("tool", card.name), *(Need("lock", name) for name in locks))


def check_locks(templates: Iterable[str], parameters: Mapping[str, Any]) -> None:
    """Look whether the arguments that locks name are parameters of their tool.

    Raises:
        InvalidConfig: one is not, or a brace has no partner.
    """
    known = parameters.get("properties", {})
    for template in templates:
        if "{" in _PLACE.sub("", template) or "}" in _PLACE.sub("", template):
            raise InvalidConfig(
                f"the lock {template!r} has a brace without a partner",
                field="locks",
                remedy="write {path} for the argument of that name",
            )
        for name in _PLACE.findall(template):
            if name not in known:
                raise InvalidConfig(
                    f"the lock {template!r} is on the argument {name!r}, which the tool has not",
                    field="locks",
                    remedy=f"its parameters are {', '.join(known) or 'none'}",
                )


def _lock(template: str, card: ToolCard, arguments: Mapping[str, Any]) -> str:
    def filled(match: re.Match[str]) -> str:
        name = match[1]
        default = card.parameters.get("properties", {}).get(name, {}).get("default")
        value = arguments.get(name, default)
        if isinstance(value, str):
            return value
        return msgspec.json.encode(value, order="deterministic").decode()

    text = _PLACE.sub(filled, template)
    try:
        return msgspec.convert(text, Name)
    except msgspec.ValidationError:
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:DIGEST_DIGITS]
        return f"{_UNFIT.sub('-', text)[:SHOWN]}@{digest}"
