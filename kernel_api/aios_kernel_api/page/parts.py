"""Parts of a page that are shown anew while somebody looks: what each is made of, and how often.

A part is named by its address, such as `programs?state=failed`. However many tabs of an agent, or
of operators, show it, it is read and made once; and all parts that are followed at a time are made
so seldom that together they take no more than a twentieth of a processor.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

import msgspec
from markupsafe import Markup
from msgspec import Struct

from aios_broker.contract.errors import InvalidRequest, NotFound
from aios_broker.contract.syscall import decode_failure, refuse_nul
from aios_kernel_api.identity import Caller, Scope, require
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.operations import NoQuery
from aios_kernel_api.page.html import rendered

SHARE = 0.05  # of a core's time, for all parts together
EVERY_S = 0.5
MOST_S = 10.0  # no longer: what stands still for so long looks dead
FOLLOWED_S = 5.0  # what somebody has asked for so lately is followed
UNSEEN_S = 30.0  # what nobody has asked for so long is forgotten
MAX_ADDRESS_CHARACTERS = 2_000

NOTHING = Markup()
Q = TypeVar("Q", bound=Struct)
Reader = Callable[[Kernel, Caller, Any], Awaitable[Mapping[str, object]]]


@dataclass(frozen=True, slots=True)
class Part:
    """What is shown, from what, to whom."""

    name: str
    template: str
    read: Reader  # returns what the template is made with, beside `caller` and `query`
    query: type[Struct] = NoQuery
    scope: Scope = "agent"


@dataclass(slots=True)
class _Html:
    """A part as it was made last."""

    html: Markup = NOTHING
    made_at_s: float = -1.0e9
    asked_at_s: float = 0.0
    rest_s: float = 0.0  # how long it stands
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Parts:
    """Makes parts for all who look at this process of the API."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._parts = parts
        self._made: dict[tuple[str, ...], _Html] = {}

    async def html(
        self, kernel: Kernel, caller: Caller, address: str, *, is_new: bool = False
    ) -> Markup:
        """Return a part; `is_new`: as it is now, not as it was a moment ago.

        Raises:
            NotFound: there is no such part.
            AccessDenied: it is for a wider scope.
            InvalidRequest: the address asks for what there is not.
        """
        part, query = self._read(address)
        require(caller, part.scope)
        made = self._made.setdefault((*_eyes(caller), address), _Html())
        async with made.lock:
            made.asked_at_s = now = time.monotonic()
            if is_new or now - made.made_at_s >= made.rest_s:
                context = await part.read(kernel, caller, query)
                made.html = rendered(part.template, caller=caller, query=query, **context)
                made.made_at_s = time.monotonic()
                made.rest_s = rest_s(made.made_at_s - now, self._followed(now))
        self._forget(now)
        return made.html

    def _read(self, address: str) -> tuple[Part, Struct]:
        name, _, text = address.partition("?")
        part = self._parts.get(name)
        if part is None or len(address) > MAX_ADDRESS_CHARACTERS:
            raise NotFound("the page has no such part", field="part")
        return part, query_from(dict(parse_qsl(text)), part.query)

    def _followed(self, now_s: float) -> int:
        """Return how many parts somebody follows."""
        return sum(now_s - made.asked_at_s <= FOLLOWED_S for made in self._made.values())

    def _forget(self, now_s: float) -> None:
        for key, made in list(self._made.items()):
            if now_s - made.asked_at_s > UNSEEN_S and not made.lock.locked():
                del self._made[key]


def rest_s(took_s: float, followed: int) -> float:
    """Return how long a part stands that took so long to make, as one of so many."""
    return min(MOST_S, max(EVERY_S, took_s * followed / SHARE))


def _eyes(caller: Caller) -> tuple[str, ...]:
    """Return with whose eyes a part is seen: all operators see the same."""
    if caller.scope == "operator":
        return (caller.scope,)
    return caller.scope, caller.tenant, caller.agent


def query_from(given: Mapping[str, str], kind: type[Q]) -> Q:
    """Return what an address asks for; what is empty is left out.

    Raises:
        InvalidRequest: a name is unknown, or a value wrong.
    """
    refuse_nul(dict(given))
    try:
        return msgspec.convert(
            {name: value for name, value in given.items() if value}, kind, strict=False
        )
    except msgspec.ValidationError as error:
        message, named = decode_failure(error)
        raise InvalidRequest(
            message, field=f"query.{named}".rstrip("."), remedy="correct it, or leave it out"
        ) from error


def address_of(name: str, query: Struct) -> str:
    """Return the address of a part: what is as it is by default stands not in it."""
    fields = {
        each.name: "true" if (value := getattr(query, each.name)) is True else value
        for each in msgspec.structs.fields(query)
        if getattr(query, each.name) != each.default
    }
    return f"{name}?{urlencode(fields)}" if fields else name
