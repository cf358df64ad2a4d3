"""What an operation takes away, and what a person is asked about: one rule for all modules.

What is gone afterwards decides, not the name of the operation:

    delete      content with all its versions: now, later (an expiry), or wherever deleting asks
                nobody (what is moved into scratch space)
    overwrite   what a file says now, behind other content; the oldest versions that are kept of a
                file or a note, pushed out by a new one, unless what is kept has all that they had
    rollback    newer content, behind older
    clear       all notes
    unshare     a grant or a link: all of it, a verb of it, a part of its time, or a thing that it
                reached by the directory that it was in
    privilege   who belongs to a group, administers, proves who it is, or is asked

A note that changes keeps what it was as a version, and asks nobody until one is pushed out.

An operation notes each thing that it takes in the very transaction that takes it (`Work.take`).
Before that transaction commits, all of them together are held against the rules: either nobody
need be asked, or there is one approval for all. What was let through is in the audit log, in the
same transaction, whoever let it through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from aios_broker.access.requests import AgentRules
from aios_broker.comparing import Pair
from aios_broker.contract.access import BoundObject, OperationClass

_NOT_BOUND = ("name", "size_bytes")
Diff = Callable[[], Awaitable[Pair | str]]  # texts are compared when the transaction is over


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing as it is in the transaction that takes it away; what an approval is bound to."""

    kind: str  # note, notes, file, version, content, tree, mounted, grants, links, group, ...
    id: str
    version: int = 0
    count: int = 1  # of what it holds, where it is many
    digest: str = ""  # SHA-256, hex: of its content, or of the ids and versions of what it holds
    # For who decides; an approval is not bound to them: what is above says which thing it is.
    name: str = field(default="", compare=False)  # as people call it, such as `file /a.md`
    size_bytes: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Irreversible:
    """What an operation takes away, for the rules and for the person who decides."""

    operation: OperationClass
    what: str  # one line: "delete /reports/q3.md (3 versions)"
    objects: tuple[Seen, ...]  # none: an approval is bound to the arguments alone
    lossy: bool = True  # something newer, or not empty, is lost
    scratch: bool = False  # all of it was made in the agent's own scratch space
    diff: str | Pair | Diff = (
        ""  # unified diff, or a list of what goes; made when a person is asked
    )

    @property
    def bound(self) -> tuple[BoundObject, ...]:
        """The objects with how they go: seen as one thing, none of them goes as another."""
        return tuple(BoundObject(self.operation, each.kind, *_told(each)) for each in self.objects)

    def asks(self, rules: AgentRules) -> bool:
        """Whether a person is asked under these rules."""
        one = rules[self.operation]
        if self.scratch and not (one.of_agent and one.rule == "ask"):
            return False
        return one.rule == "ask" or (one.rule == "ask-when-lossy" and self.lossy)

    async def shown(self, rules: AgentRules) -> Irreversible:
        """Return it with what a person is shown, where one is asked."""
        if isinstance(self.diff, str | Pair):
            return self
        return replace(self, diff=await self.diff() if self.asks(rules) else "")


@dataclass(frozen=True, slots=True)
class Takings:
    """All that one transaction takes away, and the rules of who asks for it."""

    taken: tuple[Irreversible, ...]
    rules: AgentRules

    @property
    def asks(self) -> OperationClass | None:
        """The first class that a person has to be asked for; None: nobody has to be."""
        return next((each.operation for each in self.taken if each.asks(self.rules)), None)

    @property
    def what(self) -> str:
        """The line on all of it."""
        return "; ".join(each.what for each in self.taken)


def _told(seen: Seen) -> tuple[Any, ...]:
    return seen.id, seen.version, seen.count, seen.digest, seen.name, seen.size_bytes


def shown_objects(taken: Sequence[Irreversible]) -> list[dict[str, Any]]:
    """Return, as JSON types, what all of these take, with all that a person is told of it."""
    objects: list[dict[str, Any]] = msgspec.to_builtins(
        [one for each in taken for one in each.bound]
    )
    return objects


def bound_objects(taken: Sequence[Irreversible]) -> list[dict[str, Any]]:
    """Return the same without what no approval is bound to."""
    return [
        {name: value for name, value in one.items() if name not in _NOT_BOUND}
        for one in shown_objects(taken)
    ]


def digest_of_parts(parts: Iterable[object]) -> str:
    """Return the SHA-256, in hex, of JSON-able parts, in their order."""
    return hashlib.sha256(msgspec.json.encode(list(parts))).hexdigest()
