"""Unified diffs of texts that agents wrote: in a child, since the writer decides what they cost.

Two texts of 256 KiB that were made for it keep a diff busy for minutes.
"""

import difflib
import sys

import msgspec

from aios_broker.bounded_work import BoundedWork
from aios_broker.places import Holder, Shares
from aios_broker.process.bounded import Bounds, OutOfBounds, serve

PROGRAM = "aios_broker.comparing"
MAX_COMPARED_BYTES = 256 * 1024  # of either side
AT_ONCE = Shares(places=2, of_tenant=1, of_agent=1)  # of one worker process
SHORT_LINES = 24  # of either side: all that can be made of so few takes some milliseconds
BOUNDS = Bounds(cpu_s=2, memory_bytes=512 << 20, wall_s=30.0)


class Pair(msgspec.Struct, frozen=True, array_like=True):
    """Two texts, and what they are called."""

    before: str
    after: str
    name_before: str
    name_after: str

    def hidden(self) -> str:
        """Return what is shown of it where it cannot be compared."""
        sizes = f"{len(self.before)} and {len(self.after)} characters"
        return f"{self.name_before}: {sizes} that differ in too much to be compared\n"


class Comparer:
    """Compares for many agents, a few at a time, in their turns."""

    def __init__(self) -> None:
        self._work = BoundedWork(PROGRAM, BOUNDS, AT_ONCE)

    async def unified(self, holder: Holder, pair: Pair) -> str | None:
        """Return the unified diff of two texts; None: it would take too long.

        Raises:
            ModuleError: The child that compares could not be run.
        """
        if pair.before == pair.after:
            return ""
        if max(len(text.splitlines()) for text in (pair.before, pair.after)) <= SHORT_LINES:
            return compared(pair)
        try:
            said = await self._work.run(holder, msgspec.json.encode(pair))
        except OutOfBounds:
            return None
        return said.decode("utf-8", "surrogatepass")


def compared(pair: Pair) -> str:
    """Return the diff, however long it takes; each of its lines ends."""
    lines = difflib.unified_diff(
        pair.before.splitlines(keepends=True),
        pair.after.splitlines(keepends=True),
        pair.name_before,
        pair.name_after,
    )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _work(request: bytes) -> bytes:
    return compared(msgspec.json.decode(request, type=Pair)).encode()


if __name__ == "__main__":
    sys.exit(serve(_work))
