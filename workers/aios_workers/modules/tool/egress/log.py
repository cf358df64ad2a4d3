"""What sandboxes asked of the network, for the audit log: alike requests in one line, not one each."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aios_broker.contract.names import Owner
from aios_workers.modules.tool.egress.rules import Origin

WRITE_EVERY_S = 1.0
MOST_LINES = 1_000  # that wait to be written; more are counted alone
MOST_PATHS = 16  # of a line
MOST_PATH = 200  # characters

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What alike requests have in common."""

    owner: Owner
    tool: str
    version: str
    origin: str  # `https://api.example.org`, or what was asked for
    method: str
    outcome: str  # `allowed`, or why it was refused


@dataclass(slots=True)
class EgressLine:
    """Alike requests."""

    asked: Asked
    requests: int = 0
    paths: set[str] = field(default_factory=set)  # without their queries
    keys: set[str] = field(default_factory=set)  # the names of those that were put in


class EgressLog:
    """Gathers lines, and hands them on."""

    def __init__(self, write: Callable[[list[EgressLine]], Awaitable[None]]) -> None:
        self._write = write
        self._lines: dict[Asked, EgressLine] = {}
        self._lost = 0

    def note(self, asked: Asked, path: str, keys: set[str]) -> None:
        """Take note of a request."""
        line = self._lines.get(asked)
        if line is None:
            if len(self._lines) >= MOST_LINES:
                self._lost += 1
                return
            line = self._lines[asked] = EgressLine(asked)
        line.requests += 1
        line.keys |= keys
        if len(line.paths) < MOST_PATHS:
            line.paths.add(path[:MOST_PATH])

    async def step(self) -> float:
        """Hand on what there is; return how long to wait, in s. What failed is kept."""
        lines = list(self._lines.values())
        if lines:
            await self._write(lines)
            for line in lines:
                del self._lines[line.asked]
        if self._lost:
            logger.warning("%d requests of tools to the network were not noted", self._lost)
            self._lost = 0
        return WRITE_EVERY_S


async def write_to_kernel_log(lines: list[EgressLine]) -> None:
    """Write lines where there is no audit log."""
    for line in lines:
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
