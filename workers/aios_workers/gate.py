"""Where what cannot be taken back waits for a person."""

from __future__ import annotations

from dataclasses import dataclass

from aios_broker.contract.access import OperationClass
from aios_broker.contract.syscall import Body, Syscall
from aios_broker.store.session import AgentRow, Cursor, Store
from aios_workers.run import Outcome


@dataclass(frozen=True, slots=True)
class Irreversible:
    """What an operation would take away, for the rules and for the person who decides."""

    operation: OperationClass
    what: str  # one line: "delete /reports/q3.md (3 versions)"
    lossy: bool = True  # something newer, or not empty, would be lost
    scratch: bool = False  # all of it lies in the agent's own scratch space
    diff: str = ""  # unified diff, or a list of what goes


class NeedsApproval(Exception):
    """Raised within the transaction of an operation, which so changes nothing."""

    def __init__(self, why: Irreversible, body: Body) -> None:
        super().__init__(why.what)
        self.why = why
        self.body = body


class Gate:
    """Asks for approvals, and lets through what one matching approval allows, once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def body_of(self, agent: AgentRow, syscall: Syscall) -> Body:
        """Return what is to be run: the syscall's body, or the one that a person made of it."""
        return syscall.body

    async def check(
        self, cursor: Cursor, agent: AgentRow, syscall: Syscall, body: Body, why: Irreversible
    ) -> None:
        """Return when it may be done, in this transaction; the approval is used up with it.

        Raises:
            NeedsApproval: A person has to be asked first.
            ApprovalDenied, ApprovalExpired: A person was.
        """
        raise NotImplementedError("approvals are built by the gate's own change")

    async def ask(self, agent: AgentRow, syscall: Syscall, needs: NeedsApproval) -> Outcome:
        """Enter the request and return the outcome that parks the job."""
        raise NotImplementedError("approvals are built by the gate's own change")
