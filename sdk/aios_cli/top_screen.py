"""What the person at `aios top` has asked for: the order, the filter, what is being typed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from aios_broker.queues.records import JobView

ESCAPE = "\x1b"
END = "\x04"  # of the input: Ctrl-D, or the terminal is gone
ENTER = ("\r", "\n")
BACKSPACE = ("\x7f", "\b")
KEYS = "q quit  s sort  f filter  k kill  h help"
HELP = (
    "",
    "  s        sort: as they will be taken, oldest, longest wait, most tokens first",
    "  f        filter: a text in their id, program, agent, module or state",
    "  k        end a syscall: type 8 or more digits of its id, then Enter",
    "  Esc      leave what is being typed; else take the filter away",
    "  h, ?     this page, and back",
    "  q        quit, as Ctrl-C does",
    "",
    "  SLICE is which slice it is in, or how many it has had; WAIT all the time",
    "  that it has waited; AGE the time since it was submitted.",
    "  `aios why ID` says what one waits for.",
)

ORDERS: dict[str, Callable[[JobView], float] | None] = {
    "queue": None,  # as they will be taken
    "age": lambda job: -job.age_s,
    "wait": lambda job: -job.queued_s,
    "tokens": lambda job: -job.tokens,
}


@dataclass(frozen=True, slots=True)
class KeyCommand:
    """What is to be done now: leave, or end the syscall whose id begins so."""

    what: Literal["quit", "kill"]
    typed: str = ""


@dataclass(slots=True)
class Screen:
    """Keys change it; a frame is drawn by it."""

    order: str = "queue"
    wanted: str = ""  # the filter
    help: bool = False
    asked: Literal["", "filter", "kill ID"] = ""  # what is being typed
    typed: str = ""
    said: str = ""  # what came of the last deed

    def pressed(self, key: str) -> KeyCommand | None:
        """Take a key; return what is to be done."""
        if self.asked and key != END:
            return self._typing(key)
        match key:
            case "q" | "Q" | "\x04":
                return KeyCommand("quit")
            case "h" | "?":
                self.help = not self.help
            case "s":
                names = list(ORDERS)
                self.order = names[(names.index(self.order) + 1) % len(names)]
            case "f" | "/":
                self.asked, self.typed = "filter", self.wanted
            case "k":
                self.asked, self.typed = "kill ID", ""
            case _ if key == ESCAPE:
                self.wanted, self.help = "", False
        self.said = ""
        return None

    def _typing(self, key: str) -> KeyCommand | None:
        if key in ENTER:
            asked, self.asked = self.asked, ""
            if asked == "kill ID":
                return KeyCommand("kill", self.typed) if self.typed else None
            self.wanted = self.typed
        elif key == ESCAPE:
            self.asked = ""
        elif key in BACKSPACE:
            self.typed = self.typed[:-1]
        elif key.isprintable():
            self.typed += key
        return None

    def has(self, job: JobView) -> bool:
        """Whether the filter lets a syscall through."""
        known = job.metadata
        texts = (job.job_id, known.program, known.agent, job.module, job.state)
        return any(self.wanted in text for text in texts)

    def chosen(self, jobs: Sequence[JobView]) -> list[JobView]:
        """Return those that are wanted, in the order that is wanted."""
        found = [job for job in jobs if self.has(job)]
        order = ORDERS[self.order]
        return found if order is None else sorted(found, key=order)

    def summary(self, counted: str, chosen: int) -> str:
        """Return the line below the table: what there is, and what of it is shown, and how."""
        shown = f"{counted}; {chosen} with {self.wanted!r} (Esc)" if self.wanted else counted
        return shown if self.order == "queue" else f"{shown}; sorted by {self.order}"

    def foot(self, keys: str) -> str:
        """Return the last line: what is being typed, what came of it, or the keys."""
        return f"{self.asked}: {self.typed}_" if self.asked else self.said or keys
