"""The llm module: chats, embeddings and contexts on this worker's core."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import msgspec
from prometheus_client.core import Metric

from aios_broker.contract.cores import Price
from aios_broker.contract.errors import CoreError, InvalidSyscall, SnapshotError, UnknownModule
from aios_broker.contract.llm import (
    ContextClear,
    ContextExpand,
    ContextGet,
    ContextSet,
    ContextSummarise,
    LlmBody,
    LlmChat,
    LlmCount,
    LlmEmbed,
    Message,
    SamplingOptions,
)
from aios_broker.contract.money import Billed
from aios_broker.contract.reply import ChatResult, CountResult, EmbedResult, Usage
from aios_broker.contract.snapshot import AnswersSnapshot, Snapshot, decode_snapshot
from aios_broker.contract.syscall import Body, Syscall
from aios_broker.places import Holder
from aios_broker.queues.records import Lease
from aios_broker.retry import patiently
from aios_workers.llm.answers import Plan, closed, constraint_of_chat, fits, reasoning_of
from aios_workers.llm.beam import BeamGeneration
from aios_workers.llm.context import ContextService
from aios_workers.llm.conversation import Render, counter, prompt_tokens_of
from aios_workers.llm.core import (
    Core,
    CoreRetries,
    Embeddings,
    GenerationRequest,
    Reader,
    Sampling,
    characters_of,
)
from aios_workers.llm.fallback import Fallback, Progress
from aios_workers.llm.finished import FinishedAnswers
from aios_workers.llm.generation import Generation
from aios_workers.llm.options import check_core, check_images, check_options, limit_of
from aios_workers.llm.slicing import Cutting
from aios_workers.llm.tools import Toolbox, prompt_ids, toolbox_of
from aios_workers.llm.verdicts import PATIENCE_S, FormPending
from aios_workers.runtime.executor import Done, Measured, Outcome, Suspended
from aios_workers.runtime.kernel import Kernel
from aios_workers.runtime.runs import Run, Tally

logger = logging.getLogger(__name__)


class PriceSource(Protocol):
    """A core's entry: what its use costs now; None: nothing."""

    price: Price | None


class LlmHandler:
    """Runs llm and context syscalls on one started core, as many at a time as it has slots."""

    def __init__(
        self,
        core: Core,
        kernel: Kernel,
        entry: PriceSource | None = None,
        *,
        share_kv: bool = False,
    ) -> None:
        """`share_kv`: tenants may reuse one another's contexts, and see that they did."""
        self._core = core
        self._share_kv = share_kv
        self._entry = entry  # None: what runs here costs nothing
        self._kernel = kernel
        self._reader = Reader()
        self._finished = FinishedAnswers()
        self._cutting = Cutting(core)
        # In a stock RQ worker nothing else waits for the slot.
        self._patience_s = PATIENCE_S if kernel.may_leave else None
        self._fallback = Fallback(core.info, kernel)
        self._contexts = ContextService(core, kernel.contexts, self._reader)

    @property
    def capacity(self) -> int:
        """How many generations run at the same time: the core's slots."""
        return self._core.info.slots

    async def run(self, run: Run, syscall: Syscall) -> Outcome:
        """Run a syscall, or the next part of one that was suspended.

        Raises:
            UnknownModule: Not a syscall of this module.
            UnknownCore: A stock producer named a core that is nobody's.
            UnsupportedOption: This core cannot keep an option.
            InvalidSyscall: Its options contradict each other.
            ContextTooLong: Prompt and answer do not fit; nothing ran.
            CoreError: The core failed more often than is tried within one attempt.
        """
        run.tally = Tally(
            self._core.info.name,
            None if self._entry is None else self._entry.price,
            run.lease,
            bills_requests=self._core.info.capabilities.bills_requests,
        )
        run.kv_owner = "" if self._share_kv else syscall.tenant
        outcome = await self._run(run, syscall)
        if isinstance(outcome, Done) and isinstance(outcome.result, ChatResult | EmbedResult):
            usage = self._told(outcome.result.usage, run.tally)
            return Done(msgspec.structs.replace(outcome.result, usage=usage))
        return outcome

    def _told(self, usage: Usage, tally: Tally) -> Usage:
        """Return what a caller is told: of an endpoint, what that says.

        An endpoint keeps contexts for all whose requests it gets: what it has read before is told
        only where tenants share that.
        """
        if not self._core.info.capabilities.text_ids:
            return tally.completed(usage)
        prompt_tokens = tally.billed.prompt_tokens
        told = tally.completed(msgspec.structs.replace(usage, prompt_tokens=prompt_tokens))
        return told if self._share_kv else msgspec.structs.replace(told, cached_tokens=0)

    async def _run(self, run: Run, syscall: Syscall) -> Outcome:
        if not await self._is_ours(run, syscall.body):
            return Suspended(None, "suspend")
        match syscall.body:
            case LlmChat() as body:
                return await self._chat(run, syscall, body)
            case LlmEmbed() as body:
                return await self._embed(run, body)
            case LlmCount() as body:
                return await self._count(body)
            case (
                ContextGet() | ContextSet() | ContextClear() | ContextExpand() | ContextSummarise()
            ) as body:
                return await self._contexts.run(run, syscall, body)
            case _:
                raise UnknownModule(
                    f"module 'llm' has no operation {syscall.kind!r}",
                    field="body.type",
                    remedy="send it to the queue of its own module",
                )

    async def _is_ours(self, run: Run, body: Body) -> bool:
        """Whether a syscall runs here: of a stock producer's nobody has looked where it leads."""
        if run.lease.trusted or not isinstance(body, LlmBody):
            return True
        name, queue, core = self._core.info.name, self._kernel.queue, body.core
        if core is None or core == name:
            return True
        if self._kernel.may_leave:
            return await patiently(lambda: queue.address(run.lease, core, (name,)))
        check_core(body, self._core.info)
        return True

    async def _chat(self, run: Run, syscall: Syscall, body: LlmChat) -> Outcome:
        check_options(body, self._core.info)
        holder = Holder(syscall.tenant, syscall.agent)
        toolbox = self._toolbox(body)
        render = partial(_prompt_ids, self._core, toolbox)
        kind = Generation if body.beam_width is None else BeamGeneration
        begun = run.lease.has_snapshot
        generation: Generation | BeamGeneration | None = None
        try:
            if self._core.info.capabilities.text_ids:
                await self._finished.prepare(body, holder, self._patience_s)
            plan = await self._plan(run, syscall, body, toolbox, render)
            generation = kind(self._core, self._kernel, run, plan, self._cutting)
            outcome = await generation.run()
        except CoreError as error:
            progress = Progress(begun, begun) if generation is None else generation.progress
            return await self._fallback.take(run, error, progress)
        except FormPending:  # others have the slot meanwhile
            begun_with = None if generation is None else generation.progress.snapshot
            return Suspended(begun_with, "suspend")
        except InvalidSyscall as error:  # of the form, which the core has tried
            if toolbox is not None and (error.field or "").startswith("body.format"):
                error.field = "body.tools" if body.format is None else "body.format"
            raise
        if isinstance(outcome, Done) and isinstance(outcome.result, ChatResult):
            held = plan.request.constraint is not None
            result = outcome.result
            if toolbox is not None or body.format is not None:
                await self._finished.check(
                    body, result, toolbox, holder, holds_calls=held, on_wait=run.step_aside
                )
            return Done(await self._concluded(run, syscall, body, result, render))
        return outcome

    def _toolbox(self, body: LlmChat) -> Toolbox | None:
        """Return the tools that an answer may call; most chats have none."""
        if not body.tools:
            return None
        capabilities = self._core.info.capabilities
        toolbox = toolbox_of(body, capabilities)
        if toolbox is not None and capabilities.native_calls:
            return replace(toolbox, forced=False)  # a forced call comes as any other does
        return toolbox

    async def _embed(self, run: Run, body: LlmEmbed) -> Outcome:
        check_options(body, self._core.info)
        try:
            made = await self._embedded(run, body)
        except CoreError as error:
            return await self._fallback.take(run, error, Progress())
        run.count_prompt(made.tokens)
        run.note_step(0, Billed(prompt_tokens=made.tokens))
        usage, info = Usage(prompt_tokens=made.tokens), self._core.info
        return Done(EmbedResult(made.vectors, info.model, usage, core=info.name))

    async def _embedded(self, run: Run, body: LlmEmbed) -> Embeddings:
        retries = CoreRetries(self._core, f"embeddings of syscall {run.lease.job_id}")
        while True:
            try:
                return await self._core.embed(body.texts)
            except CoreError as error:
                await retries.recover(error)

    async def _count(self, body: LlmCount) -> Done:
        check_options(body, self._core.info)
        count = counter(self._core)
        info = self._core.info
        tokens: tuple[int, ...] = ()
        prompt_tokens = 0

        def counts() -> tuple[int, ...]:
            frame = count((Message("user", ""),))
            return tuple(count((Message("user", text),)) - frame for text in body.texts)

        def whole() -> int:
            return prompt_tokens_of(self._core, body.messages, body.tools)

        if body.texts:
            tokens = await self._reader.read(sum(map(len, body.texts)), counts)
        if body.messages:
            check_images(body.messages, info)
            prompt_tokens = await self._reader.read(characters_of(body.messages), whole)
        return Done(CountResult(tokens, info.model, core=info.name, prompt_tokens=prompt_tokens))

    async def _concluded(
        self, run: Run, syscall: Syscall, body: LlmChat, result: ChatResult, render: Render
    ) -> ChatResult:
        """Return the result with what its conversation went through; add it to its context."""
        if _stands_alone(body):
            return result
        dropped = await self._contexts.compacted_messages(run, syscall, body, render)
        await self._contexts.keep(run, syscall, body, result)
        return msgspec.structs.replace(result, compacted_messages=dropped) if dropped else result

    def metrics(self) -> Iterable[Metric]:
        """Yield what resuming costs, and what the core counts, if it counts anything."""
        yield from self._cutting.metrics()
        if isinstance(self._core, Measured):
            yield from self._core.metrics()

    async def close(self) -> None:
        """Close the core, when nothing of it is used any more."""
        await self._reader.close()
        await self._finished.close()
        await self._core.close()

    async def _plan(
        self, run: Run, syscall: Syscall, body: LlmChat, toolbox: Toolbox | None, render: Render
    ) -> Plan:
        lease = run.lease
        snapshot = await self._resumable(lease, body) if lease.has_snapshot else None
        messages = await self._messages(run, syscall, body, snapshot, render)
        ids = (
            snapshot.prompt_ids
            if snapshot is not None
            else await self._reader.read(
                characters_of(messages), lambda: closed(self._core, body, render(messages))
            )
        )
        reasoning = reasoning_of(self._core, body, ids)
        info = self._core.info
        max_tokens = limit_of(body, info.tokens_of(ids), info)
        run.count_prompt(info.tokens_of(ids))
        request = GenerationRequest(
            request_id=syscall.id,
            prompt_ids=ids,
            max_tokens=max_tokens,
            sampling=_sampling_of(syscall, body, snapshot),
            constraint=constraint_of_chat(body, toolbox, info, reasoning),
            logprobs=body.logprobs,
            lora=body.lora,
            images=tuple(image for message in messages for image in message.images),
            tool_choice=body.tool_choice if toolbox is not None else None,
            kv_owner=run.kv_owner,
            holder=Holder(syscall.tenant, syscall.agent),
            patience_s=self._patience_s,
            asks_for_seed=body.seed is not None,
        )
        streams = body.stream and lease.wants_chunks
        return Plan(syscall.id, body, request, streams, toolbox, snapshot, reasoning)

    async def _messages(
        self, run: Run, syscall: Syscall, body: LlmChat, snapshot: Snapshot | None, render: Render
    ) -> Sequence[Message]:
        """Return the conversation; nothing where a snapshot has all of it that the core needs."""
        images = self._core.info.capabilities.images
        if snapshot is not None and not (images and body.overflow != "compact"):
            return ()
        messages: Sequence[Message] = body.messages
        if not _stands_alone(body):
            messages = await self._contexts.conversation(run, syscall, body, render)
        check_images(messages, self._core.info)
        return messages

    async def _resumable(self, lease: Lease, body: LlmChat) -> Snapshot | None:
        """Return the snapshot to go on from; None: it has to start from the prompt.

        What was streamed before then comes again with the same offsets; readers drop it.
        """
        data = await self._kernel.snapshot(lease.job_id)
        why = "its snapshot is gone"
        if data is not None:
            try:
                snapshot = decode_snapshot(data, model=self._core.info.snapshot_model)
            except SnapshotError as error:
                why = str(error)
            else:
                if fits(snapshot, body):
                    return snapshot
                why = "its snapshot is of another kind of generation"
        logger.warning("syscall %s starts again: %s", lease.job_id, why)
        return None


def _stands_alone(body: LlmChat) -> bool:
    """Tell whether a chat is all of its conversation, as it is."""
    return body.context is None and body.overflow != "compact"


def _prompt_ids(
    core: Core, toolbox: Toolbox | None, messages: Sequence[Message]
) -> tuple[int, ...]:
    """Return the prompt of a conversation; one without tools and calls needs no words for them."""
    if toolbox is None and not any(each.tool_calls for each in messages):
        return core.render(messages)
    return prompt_ids(core, messages, toolbox)


def _sampling_of(syscall: Syscall, body: LlmChat, snapshot: Snapshot | None) -> Sampling:
    """Return how a chat wants its tokens chosen.

    Its seed is that of its snapshot, its own, or 63 bits of its id.
    """
    seed = body.seed if body.seed is not None else int(syscall.id, 16) & (2**63 - 1)
    if isinstance(snapshot, AnswersSnapshot):
        seed = snapshot.seed
    options = {name: getattr(body, name) for name in SamplingOptions.__struct_fields__}
    return Sampling(seed=seed, **options)
