"""Refused calls in the audit log: so many lines of each agent, and how many more there were.

Each line is for ever, and who writes one keeps all others waiting: an agent that is refused without
an end must fill neither the log nor its turn.
"""

from __future__ import annotations

import logging
from collections import Counter

from aios_broker.access.audit import AuditLine, append_line, line_of
from aios_broker.contract.errors import AccessDenied, KernelError
from aios_broker.contract.syscall import Syscall
from aios_broker.places import Holder
from aios_broker.postgres.store import Store

logger = logging.getLogger(__name__)

WINDOW_S = 60.0
OF_AGENT = 60  # lines in a window, of one worker process
OF_TENANT = 600
LEFT_OUT = "audit.left_out"  # the action of the line that says how many are not there


class Refusals:
    """Writes down what agents were refused, and counts what is not written."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lines: Counter[Holder] = Counter()  # of this window; a tenant's are under no agent
        self._left_out: Counter[Holder] = Counter()

    async def note(self, syscall: Syscall, refused: AccessDenied) -> None:
        """Write a line on a refused syscall, or count it where its agent has had its lines."""
        holder, tenant = Holder(syscall.tenant, syscall.agent), Holder(syscall.tenant, "")
        if self._lines[holder] >= OF_AGENT or self._lines[tenant] >= OF_TENANT:
            self._left_out[holder] += 1
            return
        self._lines.update((holder, tenant))
        line = line_of(syscall, str(refused.field), "denied", {"message": refused.message})
        async with self._store.as_steward() as cursor:
            await append_line(cursor, line)

    async def step(self) -> float:
        """Say how many lines were left out, and begin anew; return when to do so again, in s."""
        left_out, self._left_out = self._left_out, Counter()
        self._lines.clear()
        try:
            await self._tell(left_out)
        except BaseException:
            self._left_out += left_out  # they are told of the next time
            raise
        return WINDOW_S

    async def close(self) -> None:
        """Say how many lines were left out, before the process ends; in its own log in any case."""
        try:
            await self.step()
        except KernelError as error:
            logger.warning("the audit log does not say that it lacks refused calls: %s", error)

    async def _tell(self, left_out: Counter[Holder]) -> None:
        if not left_out:
            return
        logger.warning("%d refused calls are not in the audit log one by one", left_out.total())
        async with self._store.as_steward() as cursor:
            for holder, count in left_out.items():
                detail = {"lines": count, "within_s": WINDOW_S}
                await append_line(
                    cursor,
                    AuditLine(
                        holder.tenant, holder.agent, LEFT_OUT, "audit", "denied", detail=detail
                    ),
                )
