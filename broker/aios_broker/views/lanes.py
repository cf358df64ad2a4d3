"""Which lane of a picture each span of time is drawn in: none covers another.

A worker's slots have no numbers, and need none: what runs at a time takes the first lanes that are
free, so that a worker with two slots has two lanes.
"""

from bisect import bisect_left, insort


class Lanes:
    """The lanes of one worker, or of one program; spans come in the order of their beginnings."""

    def __init__(self) -> None:
        self._free: list[int] = []  # in order
        self._busy: dict[str, tuple[int, ...]] = {}
        self.most = 0

    def begin(self, name: str, width: int = 1) -> tuple[int, ...]:
        """Take `width` lanes for a span; one that has begun already keeps its own."""
        if name not in self._busy:
            taken, self._free = self._free[:width], self._free[width:]
            lacking = width - len(taken)
            taken += range(self.most, self.most + lacking)
            self.most += lacking
            self._busy[name] = tuple(taken)
        return self._busy[name]

    def end(self, name: str) -> tuple[int, ...]:
        """Free a span's lanes, and return them; none where it has not begun."""
        lanes = self._busy.pop(name, ())
        for lane in lanes:
            insort(self._free, lane)
        return lanes

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in any lane."""
        return not self._busy


def laid_out(spans: list[tuple[int, int, int]]) -> list[tuple[int, ...]]:
    """Return the lanes of spans of time (begins, ends, width), in the order in which they stand."""
    lanes = Lanes()
    found: list[tuple[int, ...]] = [()] * len(spans)
    order = sorted(range(len(spans)), key=lambda at: (spans[at][0], at))
    ends: list[tuple[int, int]] = []  # when each that is drawn ends, in order
    for at in order:
        begins, until, width = spans[at]
        past = bisect_left(ends, (begins + 1, -1))
        for _, ended in ends[:past]:
            lanes.end(str(ended))
        del ends[:past]
        found[at] = lanes.begin(str(at), width)
        insort(ends, (until, at))
    return found
