"""A plain model of privilege groups and grants: who is in what, and who may do what with what."""

from __future__ import annotations

from dataclasses import dataclass, field

from aios_broker.contract.access import ObjectKind
from aios_broker.contract.errors import AccessDenied, AlreadyExists, NotFound, UnknownAgent

ALL = frozenset(("read", "write", "search", "share", "administer"))


@dataclass(frozen=True, slots=True)
class Object:
    """An owner's object; `wider`: names of what it lies in, with their kinds."""

    owner: str
    kind: ObjectKind
    name: str
    wider: tuple[tuple[ObjectKind, str], ...] = ()

    def is_reached_by(self, granted: Given) -> bool:
        """Whether a grant is on it, or on what it lies in."""
        on = (granted.object.kind, granted.object.name)
        return granted.object.owner == self.owner and on in ((self.kind, self.name), *self.wider)


@dataclass(frozen=True, slots=True)
class Given:
    """One grant. `to`: `agent:` or `group:` and a name."""

    object: Object
    to: str
    verbs: frozenset[str]
    by: str


def whole(verbs: frozenset[str]) -> frozenset[str]:
    """Return verbs with those that they include."""
    return ALL if "administer" in verbs else verbs


@dataclass
class AccessModel:
    """Does or refuses what the module should."""

    groups: dict[str, dict[str, str]] = field(default_factory=dict)  # to members, to roles
    given: list[Given] = field(default_factory=list)

    def verbs(self, agent: str, subject: Object) -> frozenset[str]:
        """Return what an agent may do."""
        if subject.owner == agent:
            return ALL
        mine = {
            f"agent:{agent}",
            *(f"group:{group}" for group, members in self.groups.items() if agent in members),
        }
        return whole(
            frozenset(
                verb
                for one in self.given
                if one.to in mine and subject.is_reached_by(one)
                for verb in one.verbs
            )
        )

    def grant(self, agent: str, subject: Object, to: str, verbs: frozenset[str]) -> None:
        self._require(agent, subject, verbs | {"share"})
        self._ensure_known(to)
        may_drop = "administer" in self.verbs(agent, subject)
        dropped = [
            one
            for one in self.given
            if (one.object, one.to) == (subject, to) and (may_drop or one.by == agent)
        ]
        self.given = [one for one in self.given if one not in dropped]
        covering = [one.by for one in dropped if verbs <= whole(one.verbs)]
        by = subject.owner if subject.owner in covering else [*covering, agent][0]
        self.given.append(Given(subject, to, verbs, by))
        self._end_unfounded()

    def revoke(self, agent: str, subject: Object, to: str | None) -> None:
        self._require(agent, subject, frozenset(("administer",)))
        if to is not None:
            self._ensure_known(to)
        self.given = [
            one for one in self.given if one.object != subject or to not in (None, one.to)
        ]
        self._end_unfounded()

    def create(self, agent: str, group: str) -> None:
        if group in self.groups:
            raise AlreadyExists(group)
        self.groups[group] = {agent: "admin"}

    def delete(self, agent: str, group: str) -> None:
        self._administered(agent, group)
        del self.groups[group]
        self.given = [one for one in self.given if one.to != f"group:{group}"]
        self._end_unfounded()

    def add(self, agent: str, group: str, member: str, role: str) -> None:
        self._administered(agent, group)[member] = role

    def remove(self, agent: str, group: str, member: str) -> None:
        if agent == member:
            self._found(group).pop(member, None)
        else:
            self._administered(agent, group).pop(member, None)
        self._end_unfounded()

    def _end_unfounded(self) -> None:
        """Keep what the owners gave, and what was passed on by who may still pass it on."""
        rest = [one for one in self.given if one.by != one.object.owner]
        self.given = [one for one in self.given if one not in rest]
        while True:
            stands = [
                one for one in rest if one.verbs | {"share"} <= self.verbs(one.by, one.object)
            ]
            if not stands:
                return
            self.given += stands
            rest = [one for one in rest if one not in stands]

    def shown(self) -> dict[str, list[str]]:
        """Return what the map in Redis says: names of groups by agent."""
        found: dict[str, list[str]] = {}
        for group in sorted(self.groups):
            for member in self.groups[group]:
                found.setdefault(f"default/{member}", []).append(group)
        return found

    def _require(self, agent: str, subject: Object, verbs: frozenset[str]) -> None:
        held = self.verbs(agent, subject)
        if not held:
            raise NotFound(subject.name)
        if not verbs <= held:
            raise AccessDenied(subject.name)

    def _ensure_known(self, to: str) -> None:
        kind, _, name = to.partition(":")
        if kind == "group" and name not in self.groups:
            raise UnknownAgent(name)

    def _found(self, group: str) -> dict[str, str]:
        if group not in self.groups:
            raise NotFound(group)
        return self.groups[group]

    def _administered(self, agent: str, group: str) -> dict[str, str]:
        members = self._found(group)
        if members.get(agent) != "admin":
            raise AccessDenied(group)
        return members
