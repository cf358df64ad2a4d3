"""A task that is followed: what becomes of it, as the protocol tells it.

Chunks and the reply come by themselves. That a syscall is parked nobody is told of: where it may
be, it is looked at again and again.
"""

import time
from collections.abc import AsyncIterator, Sequence

from aios_broker.client.http_messages import KEEP_ALIVE_S
from aios_broker.client.pending import Pending
from aios_broker.contract.names import Module
from aios_broker.contract.reply import Chunk
from aios_kernel_api.a2a.model import (
    TEXT,
    Artifact,
    ArtifactUpdate,
    Part,
    StatusUpdate,
    StreamResponse,
    Task,
    TaskStatus,
)
from aios_kernel_api.a2a.tasks import ended_task, look_at, told_time
from aios_kernel_api.events import Event, follow
from aios_kernel_api.identity import Caller
from aios_kernel_api.kernel import Kernel

LOOK_S = 0.25  # between two looks at a syscall that may be parked


class Following:
    """One task as somebody follows it; `task` is how it stands, for all that was heard."""

    def __init__(
        self, kernel: Kernel, caller: Caller, pending: Pending, module: Module, task: Task
    ) -> None:
        self.task = task
        self._kernel = kernel
        self._caller = caller
        self._pending = pending
        self._module = module
        self._begun: set[str] = set()  # artifacts of which some was told
        self._seen: tuple[str, int] | None = None  # state and attempt at the last look
        self._ended_before = pending.reply is not None  # at a time that is not known

    async def settle(self) -> Task:
        """Return the task once it has ended, or asks something."""
        async for _ in self.updates(past_questions=False):
            pass
        return self.task

    async def updates(self, *, past_questions: bool) -> AsyncIterator[Sequence[StreamResponse]]:
        """Yield what becomes of it until it has ended; nothing: it was quiet for a while.

        `past_questions`: go on where it asks something. Else it is its client's turn then.

        Raises:
            KernelError: the kernel stayed away, or this process is told to stop.
        """
        may_park = self._module != "llm"  # a generation asks nobody
        idle_s = LOOK_S if may_park else KEEP_ALIVE_S
        async for batch in follow(self._kernel, self._pending, idle_s=idle_s):
            if batch and self._pending.state in ("lost", "refused"):
                assert self._pending.reply is not None
                self._pending.reply.unwrap()
            told: Sequence[StreamResponse] = [each for one in batch for each in self._heard(one)]
            if may_park and not batch:
                told = await self._looked()
            yield told
            if self._asks and not past_questions:
                return

    @property
    def _asks(self) -> bool:
        return self.task.status.state == "TASK_STATE_INPUT_REQUIRED"

    def _heard(self, event: Event) -> Sequence[StreamResponse]:
        if isinstance(event, Chunk):
            return self._heard_chunk(event)
        ended_at = "" if self._ended_before else told_time(time.time())
        before, self.task = self.task, ended_task(event, self.task.context_id, ended_at)
        made = [
            StreamResponse(
                artifact_update=ArtifactUpdate(before.id, before.context_id, each, last_chunk=True)
            )
            for each in self.task.artifacts
            if each.artifact_id not in self._begun
        ]
        return (*made, self._stands())

    def _heard_chunk(self, chunk: Chunk) -> Sequence[StreamResponse]:
        told: list[StreamResponse] = []
        if self.task.status.state != "TASK_STATE_WORKING":
            told.append(
                self._moved(TaskStatus("TASK_STATE_WORKING", timestamp=told_time(time.time())))
            )
        artifact = Artifact(chunk.part, (Part(text=chunk.text, media_type=TEXT),))
        append = chunk.part in self._begun
        self._begun.add(chunk.part)
        update = ArtifactUpdate(self.task.id, self.task.context_id, artifact, append)
        return (*told, StreamResponse(artifact_update=update))

    async def _looked(self) -> Sequence[StreamResponse]:
        """Look where the syscall stands; tell of it where it is not what it was."""
        job = await self._kernel.control.job(self._pending.id, (self._module,))
        if job is None or (job.state, job.attempt) == self._seen:
            return ()
        seen = await look_at(self._kernel, self._caller, job)
        # One that is decided and still parked is looked at again: it may ask anew.
        self._seen = (
            None if job.state == "parked" and not seen.approval else (job.state, job.attempt)
        )
        if seen.task.status == self.task.status:
            return ()
        return (self._moved(seen.task.status),)

    def _moved(self, status: TaskStatus) -> StreamResponse:
        self.task = Task(self.task.id, self.task.context_id, status, self.task.artifacts)
        return self._stands()

    def _stands(self) -> StreamResponse:
        return StreamResponse(
            status_update=StatusUpdate(self.task.id, self.task.context_id, self.task.status)
        )
