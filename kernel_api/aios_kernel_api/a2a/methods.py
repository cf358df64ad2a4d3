"""The protocol's methods, each by the functions that serve the kernel's own routes.

SendMessage, SendStreamingMessage   a turn of a chat, a syscall, or an answer to a question
GetTask, ListTasks, CancelTask      syscalls, by whichever door they came
SubscribeToTask                     what becomes of one
GetExtendedAgentCard                the card of the token's agent
...PushNotificationConfig...        refused: the kernel calls nobody
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct
from starlette.requests import Request

from aios_broker.contract.llm import LlmChat
from aios_broker.contract.names import Module, Owner
from aios_broker.contract.syscall import Syscall, check_syscall, new_id
from aios_broker.queues.contexts import ContextOwner, Contexts
from aios_broker.queues.records import JobView
from aios_broker.queues.responses import Responses
from aios_kernel_api.a2a.cards import agent_card
from aios_kernel_api.a2a.following import Following
from aios_kernel_api.a2a.listing import task_page
from aios_kernel_api.a2a.messages import (
    CONTEXT_PREFIX,
    TaskAnswer,
    answer_of,
    body_of,
    check_configuration,
    context_of,
    no_push,
    told_by_part,
)
from aios_kernel_api.a2a.model import (
    FINAL,
    AgentCard,
    ListParams,
    NoParams,
    SendParams,
    StreamResponse,
    Task,
    TaskPage,
    TaskParams,
    TaskStatus,
)
from aios_kernel_api.a2a.refusals import Refusal, invalid
from aios_kernel_api.a2a.tasks import Seen, look
from aios_kernel_api.bodies import in_turn, unless_left
from aios_kernel_api.gateway.labels import labels_of
from aios_kernel_api.gateway.state import gateway_of
from aios_kernel_api.identity import Caller, require_agent
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.operations import Asked, NoQuery
from aios_kernel_api.rest import access

KEPT = b"1"  # all that is kept of a conversation beside its context


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a method."""

    request: Request
    kernel: Kernel
    caller: Caller


@dataclass(frozen=True, slots=True)
class Stream:
    """What is told of a task; `held` is let go of when nobody hears it any more."""

    told: AsyncIterator[Sequence[StreamResponse]]
    held: AbstractContextManager[object]


# Messages.


async def send(call: Call, params: SendParams) -> StreamResponse:
    """Answer a message, once its task has ended or asks something."""
    with ExitStack() as held:
        begun = await _begun(call, params, held)
        if isinstance(begun, Task):
            return StreamResponse(task=begun)
        if params.configuration.return_immediately:
            return StreamResponse(task=(await look(call.kernel, call.caller, begun.task.id)).task)
        return StreamResponse(task=await unless_left(call.request, begun.settle()))


async def send_streaming(call: Call, params: SendParams) -> Stream:
    """Answer a message as its task goes on, until it has ended or asks something."""
    with ExitStack() as held:
        begun = await _begun(call, params, held)
        if isinstance(begun, Task):
            return Stream(_only(begun), held.pop_all())
        return Stream(_told(begun, past_questions=False), held.pop_all())


async def subscribe(call: Call, params: TaskParams) -> Stream:
    """Tell of a task from where it stands to its end."""
    seen = await look(call.kernel, call.caller, params.id)
    if seen.live is None:
        why = (
            "the task has ended"
            if seen.task.status.state in FINAL
            else "only whose task it is may follow it"
        )
        raise Refusal("UNSUPPORTED_OPERATION", why, "ask for it: GetTask")
    with ExitStack() as held:
        following = await _followed(call, seen, seen.live, held)
        return Stream(_told(following, past_questions=True), held.pop_all())


async def _told(
    following: Following, *, past_questions: bool
) -> AsyncIterator[Sequence[StreamResponse]]:
    yield (StreamResponse(task=following.task),)
    async for told in following.updates(past_questions=past_questions):
        yield told


async def _only(task: Task) -> AsyncIterator[Sequence[StreamResponse]]:
    yield (StreamResponse(task=task),)


async def _begun(call: Call, params: SendParams, held: ExitStack) -> Following | Task:
    """Begin what a message asks for; return its task, followed where the caller may follow it."""
    check_configuration(params.configuration)
    if params.message.task_id:
        return await _answered(call, params, held)
    owner = require_agent(call.caller)
    async with in_turn(call.request):
        syscall = await _syscall(call, params, owner)
        pending = call.kernel.session.submit(syscall)
        held.enter_context(call.kernel.holding(pending))
    await pending.taken()
    task = Task(syscall.id, syscall.program, TaskStatus("TASK_STATE_SUBMITTED"))
    return Following(call.kernel, call.caller, pending, syscall.module, task)


async def _syscall(call: Call, params: SendParams, owner: Owner) -> Syscall:
    """Return the syscall of a message: the same messageId, the same syscall."""
    kernel, message = call.kernel, params.message
    syscall_id = kernel.session.ids(owner).from_key(f"a2a\x1f{message.message_id}")
    context_id = context_of(message, syscall_id)
    labels = labels_of(
        call.request.headers, gateway_of(call.request).trees, f"{owner.tenant} {owner.agent}"
    )
    config = kernel.config
    context = CONTEXT_PREFIX + context_id
    with told_by_part(message):
        body = body_of(message, context, config.api_default_core, config.api_default_max_tokens)
        syscall = check_syscall(
            Syscall(
                id=syscall_id,
                agent=owner.agent,
                tenant=owner.tenant,
                token=call.caller.token,
                body=body,
                program=context_id,
                nice=labels.nice,
                deadline_s=labels.deadline_s,
                traceparent=call.caller.traceparent,
            )
        )
    if isinstance(body, LlmChat) and body.context == context:
        await _keep_conversation(kernel, owner, context)
    return syscall


async def _keep_conversation(kernel: Kernel, owner: Owner, context: str) -> None:
    """Count a conversation among those that are kept; the oldest ones beyond that are forgotten."""
    kept = Responses(kernel.functions, kernel.keys)
    freed = await kept.put(owner, context, KEPT, context=context, known=False)
    contexts = Contexts(kernel.functions, kernel.keys)
    for name in freed or ():
        await contexts.change(ContextOwner(owner.tenant, owner.agent, name), new_id(), "clear")


async def _answered(call: Call, params: SendParams, held: ExitStack) -> Following | Task:
    """Decide about what a task asks, as the approvals' own routes do."""
    message = params.message
    seen = await look(call.kernel, call.caller, message.task_id)
    if message.context_id and message.context_id != seen.task.context_id:
        raise invalid(
            "message.contextId",
            "the task is of another context",
            "leave it out, or take it from the task",
        )
    if seen.approval is None:
        has_ended = seen.task.status.state in FINAL
        raise Refusal(
            "UNSUPPORTED_OPERATION",
            "the task has ended" if has_ended else "the task asks nothing",
            "send a message without taskId: it begins a new task of the same context",
        )
    await _decide(call, seen.approval.id, answer_of(message))
    seen = await look(call.kernel, call.caller, message.task_id)
    return seen.task if seen.live is None else await _followed(call, seen, seen.live, held)


async def _decide(call: Call, approval_id: str, answer: TaskAnswer) -> None:
    path = {"id": approval_id}
    if answer.decision == "approve":
        approve = access.ApproveRequest(answer.arguments)
        await access.approve(Asked(call.kernel, call.caller, NoQuery(), approve, path))
    else:
        deny = access.DenyRequest(answer.reason)
        await access.deny(Asked(call.kernel, call.caller, NoQuery(), deny, path))


async def _followed(call: Call, seen: Seen, live: JobView, held: ExitStack) -> Following:
    pending = call.kernel.session.attach(live.job_id, live.metadata.owner)
    held.enter_context(call.kernel.holding(pending))
    await pending.taken()
    module = msgspec.convert(live.module, Module)
    return Following(call.kernel, call.caller, pending, module, seen.task)


# Tasks.


async def get(call: Call, params: TaskParams) -> Task:
    """Return a task as it stands."""
    return (await look(call.kernel, call.caller, params.id)).task


async def cancel(call: Call, params: TaskParams) -> Task:
    """End a task."""
    seen = await look(call.kernel, call.caller, params.id)
    if seen.live is not None:
        module = msgspec.convert(seen.live.module, Module)
        await call.kernel.cancel(params.id, module, call.caller.asks_as)
        seen = await look(call.kernel, call.caller, params.id)
        if seen.task.status.state == "TASK_STATE_CANCELED":
            return seen.task
    raise Refusal(
        "TASK_NOT_CANCELABLE",
        "the task has ended" if seen.task.status.state in FINAL else "it is not yours to cancel",
        "ask for it: GetTask",
    )


async def list_tasks(call: Call, params: ListParams) -> TaskPage:
    """Return the agent's tasks, newest first."""
    return await task_page(call.kernel, require_agent(call.caller), params)


# What else there is.


async def extended_card(call: Call, _params: NoParams) -> AgentCard:
    """Return the card of the token's agent."""
    return agent_card(call.request, require_agent(call.caller).agent)


async def push_notifications(_call: Call, _params: NoParams) -> Task:
    """Refuse: the kernel calls nobody.

    Raises:
        Refusal: always.
    """
    raise no_push()


@dataclass(frozen=True, slots=True)
class Method:
    """What a method takes, and who answers it."""

    params: type[Struct]
    serve: Callable[[Call, Any], Awaitable[Struct | Stream]]


_PUSH = Method(NoParams, push_notifications)
METHODS: Mapping[str, Method] = {
    "SendMessage": Method(SendParams, send),
    "SendStreamingMessage": Method(SendParams, send_streaming),
    "GetTask": Method(TaskParams, get),
    "ListTasks": Method(ListParams, list_tasks),
    "CancelTask": Method(TaskParams, cancel),
    "SubscribeToTask": Method(TaskParams, subscribe),
    "GetExtendedAgentCard": Method(NoParams, extended_card),
    "CreateTaskPushNotificationConfig": _PUSH,
    "GetTaskPushNotificationConfig": _PUSH,
    "ListTaskPushNotificationConfigs": _PUSH,
    "DeleteTaskPushNotificationConfig": _PUSH,
}
