"""The llm module: a chat syscall becomes a generation on this worker's core."""

from __future__ import annotations

import logging

import msgspec

from aios_broker.contract.errors import (
    ContextTooLong,
    SnapshotError,
    UnknownCore,
    UnknownModule,
    UnsupportedOption,
)
from aios_broker.contract.llm import LlmChat
from aios_broker.contract.reply import ChatResult
from aios_broker.contract.snapshot import TokenSnapshot, decode_snapshot
from aios_broker.contract.syscall import Syscall
from aios_broker.queues.records import Lease
from aios_workers.kernel_port import KernelPort
from aios_workers.llm.context import ContextDesk
from aios_workers.llm.core import Core, CoreInfo, Sampling
from aios_workers.llm.generation import Generation, Plan
from aios_workers.run import Done, Outcome, Run

logger = logging.getLogger(__name__)


class LlmHandler:
    """Runs chat syscalls on one started core, as many at a time as it has slots."""

    def __init__(self, core: Core, port: KernelPort) -> None:
        self._core = core
        self._port = port
        self._contexts = ContextDesk(core, port.contexts)

    @property
    def capacity(self) -> int:
        """How many generations run at the same time: the core's slots."""
        return self._core.info.slots

    @property
    def cores(self) -> tuple[str, ...]:
        """The one model name that this worker serves."""
        return (self._core.info.model,)

    async def run(self, run: Run, syscall: Syscall) -> Outcome:
        """Generate an answer, or the next part of one that was suspended.

        Raises:
            UnknownModule: Not a chat syscall.
            UnknownCore: It names another core than this worker's.
            UnsupportedOption: This core cannot keep an option.
            ContextTooLong: Prompt and answer do not fit; nothing ran.
            CoreError: The core failed more often than is tried within one attempt.
        """
        if syscall.kind.startswith("context."):
            return await self._contexts.run(run, syscall)
        if not isinstance(syscall.body, LlmChat):
            raise UnknownModule(
                f"module 'llm' has no operation {syscall.kind!r}", field="body.type",
                remedy="send it to the queue of its own module",
            )  # fmt: skip
        check_options(syscall.body, self._core.info)
        plan = await self._plan(run, syscall, syscall.body)
        outcome = await Generation(self._core, self._port, run, plan).run()
        if isinstance(outcome, Done) and isinstance(outcome.result, ChatResult):
            return Done(await self._concluded(syscall, syscall.body, outcome.result))
        return outcome

    async def _concluded(self, syscall: Syscall, body: LlmChat, result: ChatResult) -> ChatResult:
        """Return the result with what its conversation went through; add it to its context."""
        dropped = await self._contexts.compacted_messages(syscall, body, self._core.render)
        await self._contexts.keep(syscall, body, result)
        return msgspec.structs.replace(result, compacted_messages=dropped) if dropped else result

    async def close(self) -> None:
        """Close the core."""
        await self._core.close()

    async def _plan(self, run: Run, syscall: Syscall, body: LlmChat) -> Plan:
        lease, syscall_id = run.lease, syscall.id
        snapshot = await self._resumable(lease) if lease.has_snapshot else None
        prompt_ids = snapshot.prompt_ids if snapshot else await self._prompt(run, syscall, body)
        check_length(len(prompt_ids), body.max_tokens, self._core.info)
        seed = body.seed if body.seed is not None else seed_of(syscall_id)
        return Plan(
            syscall_id=syscall_id,
            prompt_ids=prompt_ids,
            max_tokens=body.max_tokens,
            sampling=Sampling(
                temperature=body.temperature, top_p=body.top_p, top_k=body.top_k,
                seed=snapshot.seed if snapshot else seed,
                frequency_penalty=body.frequency_penalty,
                presence_penalty=body.presence_penalty,
                repetition_penalty=body.repetition_penalty,
            ),
            stop=body.stop,
            stream=body.stream and lease.wants_chunks,
            return_ids=body.return_ids,
            output_ids=snapshot.output_ids if snapshot else (),
            emitted_characters=snapshot.emitted_characters if snapshot else 0,
        )  # fmt: skip

    async def _prompt(self, run: Run, syscall: Syscall, body: LlmChat) -> tuple[int, ...]:
        talk = await self._contexts.conversation(run, syscall, body, self._core.render)
        return self._core.render(talk.messages)

    async def _resumable(self, lease: Lease) -> TokenSnapshot | None:
        """Return the snapshot to go on from; None: it has to start from the prompt.

        What was streamed before then comes again with the same offsets; readers drop it.
        """
        data = await self._port.snapshots.load(lease.job_id)
        if data is None:
            logger.warning("syscall %s: its snapshot is gone, it starts again", lease.job_id)
            return None
        try:
            return decode_snapshot(data, model=self._core.info.snapshot_model)
        except SnapshotError as error:
            logger.warning("syscall %s starts again: %s", lease.job_id, error)
            return None


def check_options(body: LlmChat, info: CoreInfo) -> None:
    """Raise UnknownCore or UnsupportedOption for what this core would not do as asked."""
    if body.core is not None and body.core != info.model:
        raise UnknownCore(
            f"no core {body.core!r} here", field="body.core",
            remedy=f"leave it out, or use {info.model!r}",
        )  # fmt: skip
    if info.capabilities.penalties:
        return
    neutral = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
    for option, value in neutral.items():
        if getattr(body, option) != value:
            raise UnsupportedOption(
                f"core {info.model!r} does not keep it", field=f"body.{option}",
                remedy=f"leave it out ({value})",
            )  # fmt: skip


def check_length(prompt_tokens: int, max_tokens: int, info: CoreInfo) -> None:
    """Raise ContextTooLong unless prompt and answer fit."""
    if prompt_tokens + max_tokens > info.context_tokens:
        raise ContextTooLong(
            f"the prompt has {prompt_tokens} tokens and the answer may have {max_tokens}; the "
            f"context of core {info.model!r} holds {info.context_tokens} together",
            field="body.messages", remedy="shorten the conversation, or ask for fewer max_tokens",
        )  # fmt: skip


def seed_of(syscall_id: str) -> int:
    """Return the seed of a syscall that names none: 63 bits, the same whenever it runs again."""
    return int(syscall_id, 16) & (2**63 - 1)
