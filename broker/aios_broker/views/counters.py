"""What was used, and what it cost: the counters in Redis.

What looks at these alone, such as `aios ps`, does not import the ledger with its SQL.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from aios_broker.contract.syscall import MODULES
from aios_broker.queues.quota import Quotas, Scope, Subject, Use


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What somebody has used of a module, or what was used on a core or a day."""

    module: str
    subject: Subject | None  # None: all together
    use: Use
    core: str = ""
    day: str = ""  # of UTC


@dataclass(frozen=True, slots=True)
class OwnerFilter:
    """Of whom something is wanted; None: of anybody."""

    tenant: str | None = None
    agent: str | None = None

    def has(self, tenant: str, agent: str) -> bool:
        """Tell whether something of this agent is wanted."""
        return self.tenant in (None, tenant) and self.agent in (None, agent)


ANYBODYS = OwnerFilter()


def in_order(lines: Iterable[UsageLine]) -> list[UsageLine]:
    """Return lines by module and day, of each who has used the most slot time first."""
    return sorted(lines, key=_order)


def _order(line: UsageLine) -> tuple[str, str, float, str]:
    return line.module, line.day, -line.use.ran_s, f"{line.subject or line.core}"


async def counters(quotas: Quotas, scope: Scope, whose: OwnerFilter = ANYBODYS) -> list[UsageLine]:
    """Return the counters of one scope, of all modules. Reads those of everybody."""
    return [
        UsageLine(module, subject, use)
        for module in MODULES
        for subject, use in (await quotas.usage(module)).by_subject.items()
        if subject.scope == scope and whose.has(subject.tenant, subject.agent)
    ]
