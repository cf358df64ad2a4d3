"""Who is measured, under which loads, with how many jobs. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Load = Literal["throughput", "alone", "clients"]
LOADS: tuple[Load, ...] = ("throughput", "alone", "clients")
Kind = Literal["kernel", "floor", "library"]

CLIENTS = 32  # closed loops side by side
KERNEL, AGENTS, FLOOR, RQ = "aios", "aios-agents", "floor", "rq-simple"


@dataclass(frozen=True, slots=True)
class Contestant:
    """One row of the tables. `jobs` per load: enough for a second or three; none: left out."""

    name: str
    kind: Kind
    script: str  # of peers/
    jobs: dict[Load, int]
    worker: str = "worker"  # the role that its script is started in
    client: str = "client"

    def scaled(self, share: float) -> Contestant:
        """Return it with fewer jobs."""
        return replace(self, jobs={load: max(20, int(n * share)) for load, n in self.jobs.items()})


def _jobs(throughput: int, alone: int, clients: int) -> dict[Load, int]:
    return {"throughput": throughput, "alone": alone, "clients": clients}


CONTESTANTS = (
    Contestant(KERNEL, "kernel", "kernel_peer.py", _jobs(20_000, 1500, 20_000)),
    # The same with one agent, and so one pair of connections, for each closed loop.
    Contestant(AGENTS, "kernel", "kernel_peer.py", {"clients": 10_000}, client="agents"),
    Contestant(FLOOR, "floor", "floor_peer.py", _jobs(10_000, 3000, 10_000)),
    Contestant(RQ, "library", "rq_peer.py", _jobs(800, 300, 800)),
    Contestant("rq-fork", "library", "rq_peer.py", _jobs(150, 50, 150), worker="fork-worker"),
    Contestant("celery", "library", "celery_peer.py", _jobs(1500, 300, 1200)),
    Contestant("dramatiq", "library", "dramatiq_peer.py", _jobs(4000, 200, 4000)),
    Contestant("huey", "library", "huey_peer.py", _jobs(5000, 1000, 4000)),
    Contestant("saq", "library", "saq_peer.py", _jobs(3000, 300, 2500)),
    Contestant("taskiq", "library", "taskiq_peer.py", _jobs(2500, 400, 2000)),
)
NAMES = tuple(one.name for one in CONTESTANTS)
QUICK_SHARE = 0.25  # of the jobs, in one round
