"""The way to the kernel: what every transport does, and which one a URL means."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from aios_broker.contract.errors import InvalidConfig, KernelError
from aios_broker.contract.ids import Ids
from aios_broker.contract.names import Module, Owner
from aios_broker.contract.reply import Chunk, Heard
from aios_broker.contract.syscall import State, Syscall


@dataclass(frozen=True, slots=True)
class CallStatus:
    """Where a syscall stands; times are up to now, counts over all its slices."""

    id: str
    state: State
    module: Module | None = None  # None: it has ended
    position: int | None = None  # 0 is next; None when it does not wait
    core: str = ""
    worker: str = ""
    attempt: int = 0
    slices: int = 0
    suspensions: int = 0
    tokens: int = 0
    queued_s: float = 0.0
    ran_s: float = 0.0
    deadline_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Attached:
    """What the kernel says of a syscall when a client asks to hear of it."""

    state: State | None  # None: no such syscall, or its reply has expired
    module: Module | None = None
    reply: bytes | None = None  # encoded; there once it has ended
    missing: tuple[Chunk, ...] = ()  # of its text, what the client has not heard


# What came of a submission: an error: it is not in the queue. None: the kernel has it. Attached: it
# has had it before, and this is how it stands.
Outcome = KernelError | Attached | None


class Transport(Protocol):
    """One client's way to the kernel. All methods raise Unavailable when it does not answer.

    All but `messages` may be sent again after that: a syscall's id makes them idempotent.
    """

    @property
    def result_ttl_s(self) -> float:
        """How long the kernel keeps a reply, at least, for those who ask by id."""
        ...

    async def open(self) -> None:
        """Reach the kernel, or raise at once."""
        ...

    def ids(self, owner: Owner) -> Ids:
        """Return what makes the ids of an agent's syscalls; only once it is open."""
        ...

    async def submit(self, syscalls: Sequence[Syscall]) -> list[Outcome]:
        """Publish syscalls of one module; return for each why it was refused, or None.

        Those that exist already are joined. Of what is refused nothing runs: neither one for
        which there is no room, nor one whose id stands for another syscall (KeyConflict).
        """
        ...

    # Of these, `owner` says who asks: another agent's syscalls are unknown. None: an operator.

    async def cancel(
        self, ids: Sequence[str], module: Module, error: KernelError, owner: Owner | None
    ) -> list[bool]:
        """End syscalls with `error`; False for one that has ended or was never known."""
        ...

    async def attach(
        self,
        syscall_id: str,
        module: Module | None,
        owner: Owner | None,
        heard: Heard | None = None,
    ) -> Attached:
        """Hear of a syscall that its owner submitted; None as module: whichever it is in.

        `heard`: what the client has of its text; None: it wants none.
        """
        ...

    async def status(self, syscall_id: str, owner: Owner | None) -> CallStatus | None:
        """Return where a syscall stands, or None when it has ended or is not known."""
        ...

    async def messages(self) -> list[bytes]:
        """Wait a while for encoded replies and chunks; return those that came, in order.

        Of large ones only as many as may be read in one turn of the loop.
        """
        ...

    async def aclose(self) -> None:
        """Close. Safe to call twice."""
        ...


def open_transport(url: str, name: str, *, key_prefix: str, token: str = "") -> Transport:
    """Return the transport for a kernel's URL, not opened yet.

    Args:
        url: `http://` or `https://`: of its API; `redis://`, `rediss://`, `unix://`: of its Redis.
        name: of the client, for those who look at its connections.
        key_prefix: of the keys in Redis.
        token: the agent's; to the API it alone says whose requests these are.

    Raises:
        InvalidConfig: no transport for such a URL, or its packages are not installed.
    """
    is_api = urlsplit(url).scheme in ("http", "https")
    try:
        return _http(url, name, token) if is_api else _redis(url, name, key_prefix)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("hiredis", "httpx", "redis"):
            raise
        raise InvalidConfig(
            f"{'an HTTP' if is_api else 'a Redis'} URL needs the package {package}, "
            "which is not installed",
            field="url",
            remedy=f"install 'aios-broker[{'http' if is_api else 'redis'}]'",
        ) from error


# Extras: what one of them needs is loaded when it is used.


def _http(url: str, name: str, token: str) -> Transport:
    from aios_broker.client.http_transport import HttpTransport  # noqa: PLC0415

    return HttpTransport(url, name, token)


def _redis(url: str, name: str, key_prefix: str) -> Transport:
    from aios_broker.client.redis_transport import RedisTransport  # noqa: PLC0415
    from aios_broker.queues.keys import Keys  # noqa: PLC0415

    return RedisTransport(url, name, Keys(key_prefix))
