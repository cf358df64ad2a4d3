"""How fast models write: all of them together, and each core, over the last seconds."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping

from aios_broker.queues.records import JobView

RATE_S = 10.0  # tokens per second are those of so long


class OutputRates:
    """Output tokens per second, from what is read twice a second.

    What all wrote together is counted by the kernel. It keeps no such count of a core: each core's
    share is that of the tokens that its syscalls were seen to gain. Several cores whose syscalls
    end between two looks are told apart less well; their sum is right all the same.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int, Counter[str]]] = deque()  # when; in all, by core
        self._tokens: dict[str, int] = {}  # of each syscall that was seen last
        self._by_core: Counter[str] = Counter()

    def note(self, now_s: float, total: int, jobs: Iterable[JobView]) -> None:
        """Note the tokens that the kernel has counted by now, and the syscalls that are seen."""
        before, self._tokens = self._tokens, {}
        for job in jobs:
            self._tokens[job.job_id] = job.tokens
            # One that was not seen is new; an old one comes into view where there are many.
            had = before.get(job.job_id, 0 if job.age_s < RATE_S else job.tokens)
            if self._marks and job.module == "llm":
                self._by_core[job.core] += max(0, job.tokens - had)
        self._marks.append((now_s, total, self._by_core.copy()))
        while len(self._marks) > 2 and self._marks[-1][0] - self._marks[1][0] > RATE_S:
            self._marks.popleft()

    def per_s(self) -> float | None:
        """Return what all write; None: there was no look before."""
        (began_s, first, _), (now_s, last, _) = self._marks[0], self._marks[-1]
        # Counters of a tenant that has asked nothing for a week are dropped.
        return None if now_s == began_s else max(0, last - first) / (now_s - began_s)

    def by_core(self) -> Mapping[str, float]:
        """Return what each core writes that was seen to write."""
        rate = self.per_s() or 0.0
        gained = self._marks[-1][2] - self._marks[0][2]
        every = gained.total()
        return {core: rate * tokens / every for core, tokens in gained.items() if every}
