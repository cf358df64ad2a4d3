"""Where a person is asked before a destructive tool runs: by the rules of class `tool`."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from aios_broker.contract.errors import NotConfigured
from aios_broker.contract.syscall import Syscall
from aios_broker.contract.tools import ToolCard, ToolRun
from aios_broker.postgres.store import Store
from aios_workers.approvals.irreversible import Irreversible, Seen, Takings
from aios_workers.approvals.service import ApprovalService, NeedsApproval
from aios_workers.runtime.executor import Outcome
from aios_workers.runtime.runs import Run

MOST_SHOWN = 2_000  # characters of the arguments, in the line that a person reads


class ToolApprovals:
    """Asks a person, where the database is that keeps approvals."""

    def __init__(self, open_store: Callable[[], Store | None], ttl_s: float) -> None:
        """Take what opens the database; None comes of it where this kernel has none."""
        self._open_store = open_store
        self._ttl_s = ttl_s
        self._opened: tuple[Store, ApprovalService] | None = None

    def _now(self) -> tuple[Store, ApprovalService]:
        if self._opened is None:
            store = self._open_store()
            if store is None:
                raise NotConfigured(
                    "a destructive tool asks a person first, and there is no database to ask by, "
                    "or the audit log's key is not here",
                    field="AIOS_DATABASE_URL",
                    remedy="set it, and AIOS_AUDIT_DIR as the state workers have it",
                )
            self._opened = store, ApprovalService(store, ttl_s=self._ttl_s)
        return self._opened

    async def body_of(self, run: Run, syscall: Syscall, body: ToolRun) -> ToolRun:
        """Return what is to be run: what was asked, or what a person made of it."""
        if not run.lease.decided:
            return body
        store, service = self._now()
        agent = await store.vouched(syscall.agent, syscall.tenant)
        found = await service.body_of(agent, syscall)
        return found if isinstance(found, ToolRun) else body

    async def asked(
        self, syscall: Syscall, body: ToolRun, card: ToolCard, arguments: Mapping[str, Any]
    ) -> Outcome | None:
        """Return None when it may run; else the outcome that parks it.

        An approval is for one run of one version of the tool with these arguments.

        Raises:
            NotConfigured: There is no database to ask by.
            ApprovalDenied, ApprovalExpired: A person was asked.
        """
        store, service = self._now()
        agent = await store.vouched(syscall.agent, syscall.tenant)
        told = msgspec.json.encode(arguments).decode()[:MOST_SHOWN]
        called = f"a run of tool {card.name}"
        seen = Seen("tool", card.name, digest=card.version, name=called)
        takes = Irreversible("tool", f"run {card.name} with {told}", (seen,))
        try:
            async with store.as_agent(agent) as cursor:
                rules = await service.rules(cursor, agent)
                takings = Takings((takes,), rules)
                await service.check(cursor, agent, syscall, body, takings)
        except NeedsApproval as needs:
            return await service.ask(needs)
        return None
