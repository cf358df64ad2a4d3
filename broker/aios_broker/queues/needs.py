"""What a job needs by its worker's word, which holds over its caller's: `lua/worker/needs.lua`."""

from collections.abc import Iterable

from aios_broker.contract.errors import KernelError
from aios_broker.contract.syscall import Need, checked_needs
from aios_broker.contract.tools import ToolCard
from aios_broker.queues.functions import ModuleSteps
from aios_broker.queues.records import Lease
from aios_broker.queues.rows import NeedsRow
from aios_broker.queues.tool_cards import limits_of


class NeedSteps(ModuleSteps):
    """The step between a claim and a run."""

    async def take_needs(
        self, lease: Lease, needs: Iterable[Need], card: ToolCard | None = None
    ) -> bool:
        """Say what a job needs as its worker knows it, and take that for its lease.

        What its caller said of it is over with that. Saying it again changes nothing.

        Args:
            lease: Its lease.
            needs: All of them.
            card: Of the tool that it calls; its limits are in force from here on.

        Returns:
            False: not all is free, and it holds nothing: it may not run. It comes back when all is
            (`Suspension` for the reason `needs`).

        Raises:
            InvalidSyscall: it has more needs than it may.
            KernelError: the lease is gone.
        """
        text = " ".join(map(str, checked_needs(needs)))
        tool, limits = ("", "") if card is None else (card.name, limits_of(card))
        taken = await self._call("needs", NeedsRow(lease.job_id, lease.attempt, text, tool, limits))
        if taken < 0:
            raise KernelError(f"the lease of job {lease.job_id} is gone: another worker answers it")
        return bool(taken)
