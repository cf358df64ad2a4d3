"""Writes what tools asked of the network into the audit log; without one, into the kernel's log."""

import logging
from collections.abc import Callable

from aios_broker.access.audit import AuditLine, append_line
from aios_broker.postgres.store import Store
from aios_workers.modules.tool.egress.log import EgressLine

ALLOWED = "allowed"

logger = logging.getLogger(__name__)


class AuditWriter:
    """Writes lines, all of one call in one transaction."""

    def __init__(self, open_store: Callable[[], Store | None]) -> None:
        """Take what opens the database; None comes of it where this kernel has none."""
        self._open_store = open_store
        self._store: Store | None = None

    async def write(self, lines: list[EgressLine]) -> None:
        """Write them.

        Raises:
            DatabaseUnavailable: They are not written.
        """
        self._store = self._store or self._open_store()
        if self._store is None:
            for line in lines:
                _tell(line)
            return
        async with self._store.as_steward() as cursor:
            for line in lines:
                await append_line(cursor, audit_line(line))


def audit_line(line: EgressLine) -> AuditLine:
    """Return the line of the audit log on alike requests."""
    asked = line.asked
    outcome = "done" if asked.outcome == ALLOWED else "denied"
    detail = {
        "tool": asked.tool,
        "version": asked.version,
        "method": asked.method,
        "requests": line.requests,
        "paths": sorted(line.paths),
        "keys": sorted(line.keys),
    }
    if outcome == "denied":
        detail["why"] = asked.outcome
    owner = asked.owner
    return AuditLine(owner.tenant, owner.agent, "tool.egress", asked.origin, outcome, detail=detail)


def _tell(line: EgressLine) -> None:
    asked = line.asked
    logger.info(
        "%s of %s/%s at %s %s: %d times, %s",
        asked.tool,
        asked.owner.tenant,
        asked.owner.agent,
        asked.method,
        asked.origin,
        line.requests,
        asked.outcome,
    )
