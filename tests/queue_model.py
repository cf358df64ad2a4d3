"""What the model of the queues knows of one syscall."""

from dataclasses import dataclass, field


@dataclass
class Known:
    """What the model knows of one syscall."""

    state: str = "waiting"  # waiting | running | held | finished | failed | cancelled
    attempt: int = 0
    losses: int = 0
    clients: set[str] = field(default_factory=set)
    told_to_hold: bool = False
    told_to_yield: bool = False

    @property
    def alive(self) -> bool:
        return self.state in ("waiting", "running", "held")
