"""The demo while it runs: a live table on a terminal, plain progress lines elsewhere."""

from collections.abc import Callable, Sequence
from typing import Literal

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aios_broker.client.pending import Pending
from aios_broker.contract.reply import ChatResult
from aios_broker.contract.syscall import State
from aios_broker.queues.records import JobView
from aios_broker.views.words import plural, seconds
from aios_cli.demo.load import DemoAgent
from aios_cli.demo.run import Answer, PolicyRun, Progress
from aios_cli.tables import first_words

PROGRESS_EVERY_S = 5.0  # of the plain view
REFRESH_PER_SECOND = 4
FIXED_LINES = 7  # of the live table, beside its agents
FIXED_COLUMNS: tuple[tuple[str, int, Literal["left", "right"]], ...] = (
    ("Agent", 11, "left"),
    ("Asks", 4, "left"),
    ("Tokens", 6, "right"),
    ("Waited", 7, "right"),
)
WORDS_LIMIT = 44  # of the plain view
MARKS: dict[State, tuple[str, str]] = {
    "queued": ("○", "dim"),
    "running": ("▶", "bold green"),
    "suspended": ("◐", "yellow"),
    "held": ("■", "magenta"),
    "parked": ("■", "magenta"),
    "finished": ("✓", "green"),
    "failed": ("✗", "red"),
    "cancelled": ("✗", "red"),
}
LEGEND = "▶ runs   ◐ suspended   ○ waits   ✓ answered"


class PlainView(Progress):
    """One line per event; `write` takes it."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write
        self._next_s = 0.0

    def began(self, policy: str, agents: Sequence[DemoAgent]) -> None:
        """Say so."""
        super().began(policy, agents)
        self._next_s = 0.0
        self._write(f"{policy}: {plural(len(agents), 'agent')}, {plural(self.total, 'syscall')}")

    def looked(self, jobs: Sequence[JobView]) -> None:
        """Say how far it is, every few seconds."""
        super().looked(jobs)
        if self.elapsed_s >= self._next_s:
            self._next_s = self.elapsed_s + PROGRESS_EVERY_S
            self._line(self.counts)

    def answered(self, answer: Answer) -> None:
        """Say who got what."""
        super().answered(answer)
        timings = answer.reply.timings
        if answer.reply.error is not None:
            self._line(f"{answer.agent.name}: {answer.reply.error.code}")
            return
        request = self.requests[answer.reply.id]
        text = answer.reply.result.text if isinstance(answer.reply.result, ChatResult) else ""
        self._line(
            f"{answer.agent.name}: {plural(request.tokens, 'token')} in "
            f"{plural(timings.slices, 'slice')}, waited {seconds(timings.queued_s)}: "
            f"{first_words(text, WORDS_LIMIT)}"
        )

    def ended(self, run: PolicyRun) -> None:
        """Say so."""
        self._write(f"{run.policy}: done in {seconds(run.makespan_s)}")

    def _line(self, text: str) -> None:
        self._write(f"{self.policy} {seconds(self.elapsed_s):>8}  {text}")


class LiveView(Progress):
    """A table that is drawn again four times a second; a context manager."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._live = Live(
            get_renderable=self._frame,
            console=console,
            refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
        )

    def began(self, policy: str, agents: Sequence[DemoAgent]) -> None:
        """Begin to draw."""
        super().began(policy, agents)
        self._live.start()

    def ended(self, run: PolicyRun) -> None:
        """Leave the last frame's gist in the scroll-back."""
        self._live.stop()
        self._console.print(
            f"[bold]{run.policy}[/]: {plural(len(run.answers), 'answer')} in "
            f"{seconds(run.makespan_s)}",
            highlight=False,
        )

    def stop(self) -> None:
        """Give the terminal back; safe to call at any time."""
        self._live.stop()

    def _frame(self) -> Group:
        title = Text.assemble(
            (self.policy, "bold"), f"  {seconds(self.elapsed_s)}  {self.counts}", no_wrap=True
        )
        return Group(title, self._table(), Text(LEGEND, style="dim"))

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        for title, width, justify in FIXED_COLUMNS:
            table.add_column(title, min_width=width, justify=justify, no_wrap=True)
        table.add_column("Latest answer", no_wrap=True)
        room = max(self._console.height - FIXED_LINES, 3)
        for agent in self.agents[:room]:
            table.add_row(*self._row(agent))
        if len(self.agents) > room:
            table.add_row(f"… {len(self.agents) - room} more")
        return table

    def _row(self, agent: DemoAgent) -> list[Text]:
        requests = [r for r in self.requests.values() if r.agent is agent]
        marks = Text()
        for request in requests:
            marks.append(*MARKS[request.state])
        texts = [r for r in requests if r.pending.chunks]
        room = self._console.width - sum(width + 1 for _, width, _ in FIXED_COLUMNS)
        words = first_words(_text(texts[-1].pending), max(room, 1)) if texts else ""
        return [
            Text(agent.name),
            marks,
            Text(str(sum(r.tokens for r in requests))),
            Text(seconds(max((r.waited_s for r in requests), default=0.0))),
            Text(words),
        ]


def _text(pending: Pending) -> str:
    return "".join(chunk.text for chunk in pending.chunks)
