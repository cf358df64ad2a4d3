"""What every operation of the module works with: a namespace, in one transaction."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from aios_broker.contract.access import OperationClass
from aios_broker.contract.paths import is_within
from aios_broker.contract.reply import Result
from aios_broker.contract.storage import StorageBody
from aios_broker.postgres.session import AgentRow
from aios_workers.approvals.service import Diff, Irreversible
from aios_workers.modules.operation import Asked, Operation, Work, changes, reads
from aios_workers.modules.services import Services

SCRATCH = "/scratch"  # below it an agent's own files are deleted and overwritten without a person

S = TypeVar("S", bound=StorageBody)
S_co = TypeVar("S_co", bound=StorageBody, covariant=True)


@dataclass(frozen=True, slots=True)
class FileWork(Work[S_co], Generic[S_co]):
    """One syscall in its transaction, on a namespace."""

    owner: AgentRow  # of the namespace
    allowed: bool = False  # a person was asked for a whole plan that this is a step of

    @property
    def is_own(self) -> bool:
        """Whether the namespace is the asker's own."""
        return self.owner.id == self.agent.id

    async def confirm_on(
        self,
        operation: OperationClass,
        what: str,
        path: str,
        *,
        lossy: bool = True,
        diff: str | Diff = "",
    ) -> None:
        """Return when a person allowed this on a path, or need not be asked.

        Raises:
            NeedsApproval, ApprovalDenied, ApprovalExpired: A person has to decide, or has decided.
        """
        if self.allowed:
            return
        scratch = self.is_scratch(path)
        await self.confirm(Irreversible(operation, what, lossy=lossy, scratch=scratch, diff=diff))

    def is_scratch(self, path: str) -> bool:
        """Whether a path lies in the asker's own scratch space."""
        return self.is_own and is_within(path, SCRATCH)


AnyWork = FileWork[StorageBody]  # what the steps share does not look at the body
FileStep = Callable[[FileWork[S]], Awaitable[Result]]


def owner_name(body: StorageBody) -> str | None:
    """Return whose namespace a body means; None: the asker's."""
    owner: str | None = getattr(body, "owner", None)  # not all can name one
    return owner


def namespace_lock(asked: Asked[S], *, own: bool = False) -> tuple[str]:
    """Return the name under which changes of a namespace take turns.

    It is the one that the body means, or the asker's own.
    """
    owner = (None if own else owner_name(asked.body)) or asked.agent.name
    return (f"aios.storage {asked.agent.tenant}/{owner}",)


async def on_namespace(work: Work[S], *, own: bool = False) -> FileWork[S]:
    """Return a piece of work as one on the namespace that its body means, or on the asker's own."""
    owner = await work.agent_named(None if own else owner_name(work.body))
    return FileWork(work.asked, work.cursor, owner, afterwards=work.afterwards)


def file_reads(body: type[S], step: FileStep[S]) -> Operation[S]:
    """Return the operation of a step that changes nothing."""

    async def on_named(work: Work[S]) -> Result:
        return await step(await on_namespace(work))

    return reads(body, on_named)


def file_changes(
    body: type[S],
    step: FileStep[S],
    *,
    irreversible: OperationClass | tuple[OperationClass, ...] = (),
    own: bool = False,
) -> Operation[S]:
    """Return the operation of a step that changes a namespace; one change of it at a time.

    With `own` it is the asker's namespace that changes, whoever's the body names.
    """

    async def on_locked(work: Work[S]) -> Result:
        return await step(await on_namespace(work, own=own))

    locks = partial(namespace_lock, own=own)
    return changes(body, on_locked, irreversible=irreversible, locks=locks, after=_announce)


async def _announce(services: Services) -> None:
    """Have what was written indexed at once."""
    services.unembedded.set()
