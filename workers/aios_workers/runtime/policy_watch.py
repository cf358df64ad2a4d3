"""The published policy, as a worker obeys it: looked up at most once a second."""

from __future__ import annotations

import asyncio
import logging

import hiredis
import msgspec

from aios_broker.contract.errors import KernelError
from aios_broker.contract.names import Module
from aios_broker.queues.control import Control
from aios_broker.queues.records import PolicyRow

logger = logging.getLogger(__name__)

FRESH_S = 1.0


class PolicyWatch:
    """Keeps the policy of one module at hand. While it cannot be read the last one holds."""

    def __init__(self, control: Control, module: Module) -> None:
        self._control = control
        self._module: Module = module
        self._row = PolicyRow()
        self._fresh_until_s = 0.0
        self._looking: asyncio.Task[None] | None = None

    @property
    def row(self) -> PolicyRow:
        """The policy, at most about a second old while Redis answers. Costs nothing."""
        stale = asyncio.get_running_loop().time() >= self._fresh_until_s
        if stale and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self.refresh())
        return self._row

    async def refresh(self) -> None:
        """Read the policy now."""
        self._fresh_until_s = asyncio.get_running_loop().time() + FRESH_S
        try:
            self._row = await self._control.policy(self._module)
        except (KernelError, hiredis.ReplyError, msgspec.ValidationError) as error:
            logger.warning(
                "the policy of %s cannot be read, %s goes on: %s",
                self._module,
                self._row.name,
                error,
            )


class FixedPolicy:
    """A policy that is told: for the slow path and for tests."""

    def __init__(self, row: PolicyRow) -> None:
        self.row = row
