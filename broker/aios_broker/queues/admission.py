"""What may run now: limits of resources, who holds them, programs that are not admitted.

`lua/shared/admission.lua` decides; here it is told what it decides by, and asked why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from aios_broker.contract.errors import InvalidConfig, KernelError
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import Need
from aios_broker.queues.functions import Steps
from aios_broker.queues.quota import Barrier, Subject, read_barrier
from aios_broker.redis.connection import Answer

# place, model: what one tenant or agent may have of a state module's slots, and of those places at
# it where calls wait for models.
ResourceKind = Literal["tool", "program", "lock", "place", "model"]
MAX_LIMIT = 1_000_000
_TENANT_AND_AGENT = 2  # words before the name of a tool, where its places are an agent's
MAX_BAR_S = 3600.0  # a bar must be renewed: one whose scheduler died ends by itself
_WHAT: dict[bytes, Literal["requests", "tokens", "told"]] = {
    b"requests": "requests",
    b"tokens": "tokens",
    b"told": "told",
}
_KINDS: dict[str, ResourceKind] = {kind: kind for kind in get_args(ResourceKind)}


@dataclass(frozen=True, slots=True)
class Resource:
    """What only so many syscalls of a module may hold at once, while they run."""

    kind: ResourceKind
    name: str
    tenant: str = ""  # of a lock, a program, or a tenant's places at a tool
    agent: str = ""  # of a program, or an agent's places at a tool

    def __str__(self) -> str:
        """Return the name that Redis knows it by."""
        return f"{self.kind}:" + " ".join(filter(None, (self.tenant, self.agent, self.name)))

    @classmethod
    def tool(cls, name: str, *, agent: str = "", tenant: str = "") -> Resource:
        """Return a tool, everybody's; or the places that a tenant or an agent may have at it.

        Raises:
            InvalidSyscall: no tool can have that name.
        """
        tenant = tenant or ("default" if agent else "")
        return cls("tool", Need("tool", name).name, tenant, agent)

    @classmethod
    def lock(cls, name: str, tenant: str = "default") -> Resource:
        """Return a lock of a tenant.

        Raises:
            InvalidSyscall: no lock can have that name.
        """
        return cls("lock", Need("lock", name).name, tenant)

    @classmethod
    def program(cls, name: str, agent: str, tenant: str = "default") -> Resource:
        """Return a program of an agent.

        Raises:
            InvalidSyscall: no program can have that name.
        """
        return cls("program", Need("program", name).name, tenant, agent)

    @classmethod
    def parse(cls, text: str) -> Resource:
        """Read a name as Redis knows it.

        Raises:
            KernelError: it is none.
        """
        kind, _, rest = text.partition(":")
        match _KINDS.get(kind), rest.split(" "):
            case "tool", [*owners, name] if len(owners) <= _TENANT_AND_AGENT:
                return cls("tool", name, *owners)
            case "lock", [tenant, name]:
                return cls("lock", name, tenant)
            case "program", [tenant, agent, name]:
                return cls("program", name, tenant, agent)
            case ("place" | "model") as share, [tenant]:
                return cls(share, "", tenant)
            case ("place" | "model") as share, [tenant, agent]:
                return cls(share, "", tenant, agent)
            case _:
                raise KernelError(f"{text!r} names no tool, program, lock or share")

    @property
    def words(self) -> str:
        """Return it as people say it."""
        owner = f"tenant {self.tenant!r}"
        if self.agent:
            owner = f"agent {self.agent!r} of {owner}"
        match self.kind:
            case "tool" if self.tenant:
                return f"one of the places at tool {self.name!r} that {owner} may have at once"
            case "tool":
                return f"tool {self.name!r}"
            case "place":
                return f"one of the places that {owner} may have at once"
            case "model":
                return f"one of the places where calls of {owner} wait for models"
            case kind:
                return f"{kind} {self.name!r} of {owner}"


@dataclass(frozen=True, slots=True)
class ResourceRow:
    """A resource that is limited, held or owed."""

    resource: Resource
    limit: int | None  # how many may hold it; None: any number
    holders: tuple[str, ...]  # ids of the syscalls that run with it
    owed_to: str | None = None  # the syscall that gets the next place

    @property
    def free(self) -> int | None:
        """How many more may hold it now; None: any number."""
        return None if self.limit is None else max(0, self.limit - len(self.holders))


@dataclass(frozen=True, slots=True)
class Shortage:
    """A resource that a waiting syscall cannot have now."""

    resource: Resource
    holders: int
    limit: int
    owed_to: str | None  # another syscall, that gets the next place
    held_by: tuple[str, ...] = ()  # ids of the syscalls that run with it


@dataclass(frozen=True, slots=True)
class NotAdmitted:
    """A program that the scheduler's policy does not let run now."""

    program: Subject
    ends_in_s: float  # unless the bar is renewed, or taken away before


@dataclass(frozen=True, slots=True)
class RateLimited:
    """The account behind a core has no room for more now."""

    core: str
    what: Literal["requests", "tokens", "told"]  # told: its endpoint asked for a pause
    used: int  # in the last minute, with those that claims have taken places for
    most: int
    opens_in_s: float


class Admission(Steps):
    """Reads and changes what decides over the waiting syscalls of a deployment."""

    async def set_limit(self, module: Module, resource: Resource, most: int) -> None:
        """Let at most so many syscalls hold a tool or program at once, 0 to MAX_LIMIT.

        It counts from the next claim on. Where more hold it already they go on; 0 lets no other
        begin.

        Raises:
            InvalidConfig: a lock, which is always one syscall's; or a number out of range.
        """
        if resource.kind == "lock":
            raise InvalidConfig(
                f"{resource.words} is held by one syscall at a time",
                field="resource",
                remedy="name a tool where several may run at once",
            )
        if not 0 <= most <= MAX_LIMIT:
            raise InvalidConfig(
                f"the limit of {resource.words} is {most}",
                field="limit",
                remedy=f"use 0 to {MAX_LIMIT}, or take the limit away",
            )
        await self._execute("HSET", self._limits(module), str(resource), most)

    async def unset_limit(self, module: Module, resource: Resource) -> bool:
        """Take a limit away; return whether there was one."""
        return bool(await self._execute("HDEL", self._limits(module), str(resource)))

    async def resources(self, module: Module) -> list[ResourceRow]:
        """Return all that is limited, held or owed, in the order of names."""
        rows = await self._call("resources", module, [])
        return sorted((_row(row) for row in rows), key=lambda row: str(row.resource))

    async def bar(
        self, module: Module, epoch: int, programs: Collection[Subject], for_s: float
    ) -> bool:
        """Do not admit these programs for so long, and admit all others.

        What runs of them goes on; what waits is passed over. To bar them for longer, say so again
        before the time is over: when no scheduler lives, all are admitted again.

        Args:
            module: Whose queue.
            epoch: Of the scheduler's leadership.
            programs: `Subject.of_program(...)`.
            for_s: Over 0, up to MAX_BAR_S.

        Returns:
            False: the epoch is over, another scheduler leads, nothing was changed.

        Raises:
            InvalidConfig: no program, or a time out of range.
        """
        for subject in programs:
            if subject.scope != "program":
                raise InvalidConfig(
                    f"{subject.words} is no program",
                    field="programs",
                    remedy="bar programs; agents and tenants have quotas",
                )
        if not 0.0 < for_s <= MAX_BAR_S:
            raise InvalidConfig(
                f"a bar of {for_s} s", field="for_s", remedy=f"use up to {MAX_BAR_S:g} s, and renew"
            )
        names = [str(subject) for subject in programs]
        return bool(await self._call("bar", module, [epoch, round(for_s * 1000), *names]))

    async def barrier(
        self, module: Module, job_id: str
    ) -> Barrier | Shortage | NotAdmitted | RateLimited | None:
        """Return what keeps a waiting syscall from running, cores and its place aside."""
        match await self._call("barrier", module, [job_id]):
            case []:
                return None
            case [b"resource", name, holders, limit, owed_to, *held_by]:
                resource = Resource.parse(name.decode())
                owed = owed_to.decode() or None
                return Shortage(resource, holders, limit, owed, _ids_of(held_by))
            case [b"program", name, ms]:
                return NotAdmitted(Subject.parse(name.decode()), ms / 1000)
            case [b"rate", core, what, used, most, ms]:
                return RateLimited(core.decode(), _WHAT[what], used, most, ms / 1000)
            case [b"quota", *row]:
                return read_barrier(row)
            case other:
                raise KernelError(f"a barrier of an unknown kind: {other!r}")

    def _limits(self, module: Module) -> str:
        return self.keys.own(f"resources:{module}")


def _ids_of(members: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(member.decode().rpartition(":")[0] for member in members)


def _row(row: Answer) -> ResourceRow:
    name, limit, owed_to, *holders = row
    return ResourceRow(
        Resource.parse(name.decode()),
        None if limit < 0 else limit,
        _ids_of(holders),
        owed_to.decode() or None,
    )
