"""The answer as text, token by token: UTF-8 put together, stop strings found.

Fed one token at a time, in order, it gives the same text wherever the generation was cut: what
a stop string matches never depends on how tokens arrived in steps or slices.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class AnswerText:
    """The text of one answer as it grows.

    Ends just before the first stop string. Characters that may be the beginning of one are
    kept back from `take_ready` until it is clear whether they are.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._window = max((len(each) for each in stop), default=1) - 1
        self._ready: list[str] = []  # may be streamed, not yet taken
        self._taken: list[str] = []
        self._tail = ""  # kept back: the beginning of a stop string, perhaps
        self.stopped = False  # a stop string was found, the answer is complete

    @property
    def text(self) -> str:
        """The whole answer so far."""
        return "".join((*self._taken, *self._ready, self._tail))

    def feed(self, piece: bytes) -> bool:
        """Append the bytes of one token; return True when the answer ends here."""
        return self._append(self._decoder.decode(piece))

    def finish(self) -> None:
        """The generation is over: what was kept back belongs to the answer.

        A character that was left incomplete becomes U+FFFD.
        """
        self._append(self._decoder.decode(b"", final=True))
        self._ready.append(self._tail)
        self._tail = ""

    def take_ready(self) -> str:
        """Return the characters, not returned before, that are certain to be in the answer."""
        ready = "".join(self._ready)
        self._taken.append(ready)
        self._ready.clear()
        return ready

    def _append(self, text: str) -> bool:
        if self.stopped or not text:
            return self.stopped
        tail = self._tail + text
        found = [at for at in (tail.find(each) for each in self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._ready.append(tail[: min(found)])
            self._tail = ""
            return True
        keep = self._possible_beginning(tail)
        cut = len(tail) - keep
        self._ready.append(tail[:cut])
        self._tail = tail[cut:]
        return False

    def _possible_beginning(self, tail: str) -> int:
        """Return how many characters at the end may begin a stop string."""
        for size in range(min(self._window, len(tail)), 0, -1):
            end = tail[-size:]
            if any(each.startswith(end) for each in self._stop):
                return size
        return 0


class CallFilter:
    """Keeps back, while an answer is streamed, what may turn out to be a tool call.

    Passes text up to the first appearance of a marker; from there on nothing. An empty marker
    keeps everything back.
    """

    def __init__(self, marker: str) -> None:
        self._text = AnswerText((marker,)) if marker else None

    def passed(self, text: str) -> str:
        """Return what may be streamed now that `text` has come."""
        if self._text is None:
            return ""
        self._text.feed(text.encode())
        return self._text.take_ready()
