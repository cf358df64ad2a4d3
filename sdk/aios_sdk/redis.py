"""The direct transport: publish straight into the kernel's Redis. Needs `aios-broker[redis]`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from aios_broker.contract.errors import KernelError, KernelNotRunning, RedisUnavailable
from aios_broker.contract.job import encode_job
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES, State, Syscall
from aios_broker.queues.connection import Connection
from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.queues.module_queue import RESULT_TTL_S, ModuleQueue
from aios_broker.queues.records import Facts, JobView, Submission
from aios_broker.queues.replies import ReplyBox
from aios_sdk.config import REMEDY, SdkConfig
from aios_sdk.transport import Attached, CallStatus

BLOCK_S = 10.0  # one blocking look; it ends at once when something comes


class RedisTransport:
    """Two connections: one for commands, one that blocks on this client's reply list."""

    def __init__(self, config: SdkConfig, agent: str) -> None:
        keys = Keys(config.key_prefix)
        self._config = config
        self._client = f"{agent}.{uuid.uuid4().hex[:16]}"
        self._connection = Connection(config.url, name=f"aios-sdk:{agent}")
        functions = Functions(self._connection)
        self._queues = {module: ModuleQueue(functions, module, keys) for module in MODULES}
        self._control = Control(functions, keys)
        blocking = Connection(config.url, name=f"aios-sdk-replies:{agent}")
        self._replies = ReplyBox(blocking, self._client, keys)

    @property
    def result_ttl_s(self) -> float:
        """How long a stored reply can be fetched."""
        return RESULT_TTL_S

    async def open(self) -> None:
        """Reach Redis and our functions in it, or raise at once."""
        try:
            await self._control.queue("tool")
        except RedisUnavailable as error:
            if self._config.record_path is None:
                raise
            raise KernelNotRunning(
                f"the kernel of {self._config.record_path} does not answer: {error.message}",
                remedy=REMEDY,
            ) from error

    async def submit(self, syscalls: Sequence[Syscall]) -> None:
        """Publish syscalls of one module in one step."""
        jobs = [_submission(syscall, self._client) for syscall in syscalls]
        await self._queues[syscalls[0].module].submit(jobs)

    async def cancel(self, ids: Sequence[str], module: Module, error: KernelError) -> list[bool]:
        """End syscalls of one module in one step."""
        outcomes = await self._control.cancel(ids, error, module=module)
        return [outcome == "done" for outcome in outcomes]

    async def attach(self, syscall_id: str, module: Module | None) -> Attached:
        """Join those who wait for a syscall, or fetch its stored reply."""
        for candidate in (module,) if module else MODULES:
            state, reply = await self._queues[candidate].attach(syscall_id, self._client)
            if state != "unknown":
                return Attached(_state(state), candidate, reply)
        return Attached(None)

    async def status(self, syscall_id: str) -> CallStatus | None:
        """Look at one syscall that has not ended."""
        view = await self._control.job(syscall_id)
        return None if view is None else _status(view)

    async def messages(self) -> list[bytes]:
        """Take what lies in the reply list; block for the first message."""
        return await self._replies.take(timeout_s=BLOCK_S)

    async def aclose(self) -> None:
        """Close both connections."""
        await self._replies.aclose()
        await self._connection.aclose()


def _submission(syscall: Syscall, client: str) -> Submission:
    facts = Facts(syscall.agent, syscall.kind, syscall.program, syscall.tenant, syscall.nice)
    return Submission(
        syscall.id, encode_job(syscall), facts, client, syscall.needs, syscall.deadline_s,
        f"{syscall.kind} of {syscall.agent}/{syscall.program}",
    )  # fmt: skip


_STATES: dict[str, State] = {
    "queued": "queued", "running": "running", "suspended": "suspended", "held": "held",
    "parked": "parked", "finished": "finished", "failed": "failed", "cancelled": "cancelled",
}  # fmt: skip
_MODULES: dict[str, Module] = {module: module for module in MODULES}


def _state(raw: str) -> State:
    return _STATES[raw]


def _status(view: JobView) -> CallStatus:
    return CallStatus(
        id=view.job_id, state=view.state, module=_MODULES[view.module], position=view.position,
        core=view.core, worker=view.worker, attempt=view.attempt, slices=view.slices,
        suspensions=view.suspensions, tokens=view.tokens, queued_s=view.queued_s,
        ran_s=view.ran_s, deadline_in_s=view.deadline_in_s,
    )  # fmt: skip
