"""What sandboxes asked of the network, for the audit log: one line for requests that are alike."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aios_broker.contract.errors import KernelError
from aios_broker.contract.names import Owner

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

    def add(self, other: "EgressLine") -> None:
        """Add requests that are alike, and came later."""
        self.requests += other.requests
        self.keys |= other.keys
        self.paths |= set(sorted(other.paths)[: MOST_PATHS - len(self.paths)])


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
        lines, self._lines = self._lines, {}
        try:
            if lines:
                await self._write(list(lines.values()))
        except BaseException:
            for asked, line in self._lines.items():
                if asked in lines:
                    lines[asked].add(line)
                else:
                    lines[asked] = line
            self._lines = lines
            raise
        if self._lost:
            logger.warning("%d requests of tools to the network were not noted", self._lost)
            self._lost = 0
        return WRITE_EVERY_S

    async def close(self) -> None:
        """Hand on what is left."""
        try:
            await self.step()
        except KernelError as error:
            logger.warning("what tools asked of the network at last is not noted: %s", error)
