"""Operations of the routes that are written out: syscalls, health, and this description itself."""

from aios_broker.client import http_messages as wire
from aios_broker.client.transport import CallStatus
from aios_kernel_api.health import Health, Readiness
from aios_kernel_api.openapi import Json
from aios_kernel_api.operations import Answer, Operation
from aios_kernel_api.rest.session import StatusQuery
from aios_kernel_api.rest.syscall_view import SyscallView
from aios_kernel_api.rest.syscalls import SubmitQuery, SyscallRequest, WaitQuery

CHAT = {
    "program": "report",
    "body": {
        "type": "llm.chat",
        "messages": [{"role": "user", "content": "Name three rivers."}],
        "max_tokens": 64,
    },
}
FINISHED = {
    "id": "5f0c2a51b7d94e03a6c8d1e2f3a4b5c6",
    "state": "finished",
    "worker": "llm-1",
    "result": {
        "type": "llm.chat",
        "text": "The Rhine, the Nile, the Amur.",
        "finish_reason": "stop",
        "model": "smollm2-135m",
        "usage": {"prompt_tokens": 12, "output_tokens": 11},
    },
    "timings": {"queued_s": 0.002, "ran_s": 0.41, "slices": 1, "attempts": 1},
}
QUEUED = {"id": "5f0c2a51b7d94e03a6c8d1e2f3a4b5c6", "state": "queued", "module": "llm"}
_KEY = {"Idempotency-Key": "Names the syscall: the same key, the same syscall. `key` does, too"}
_AT = {"Location": "Where it is looked at"}
_ITS_ERRORS = (404, 409, 412, 423, 500, 502, 504)  # what the syscall itself may end with

SYSCALLS = (
    Operation(
        method="POST",
        path="/v1/syscalls",
        tag="Syscalls",
        words="Submit one syscall, or up to 500 of them",
        more="It goes on when its client leaves. Of several, each has its own answer in the list; "
        "of one, its error is the answer's.",
        scope="agent",
        query=SubmitQuery,
        body=SyscallRequest | list[SyscallRequest],
        body_example=CHAT,
        headers=_KEY,
        answers={
            200: Answer(
                words="All have ended",
                kind=SyscallView | list[SyscallView],
                example=FINISHED,
                headers=_AT,
            ),
            202: Answer(
                words="The kernel has them; some have not ended",
                kind=SyscallView | list[SyscallView],
                example=QUEUED,
                headers=_AT,
            ),
        },
        errors=_ITS_ERRORS,
    ),
    Operation(
        method="GET",
        path="/v1/syscalls/{id}",
        tag="Syscalls",
        words="Show where a syscall stands, and its answer once it has ended",
        more="`parked`: it waits for a person's approval.",
        scope="agent",
        query=SubmitQuery,
        answers={
            200: Answer(words="The syscall", kind=SyscallView, example=FINISHED),
            202: Answer(
                words="It was waited for, and has not ended", kind=SyscallView, example=QUEUED
            ),
        },
        errors=(404,),
    ),
    Operation(
        method="GET",
        path="/v1/syscalls/{id}/wait",
        tag="Syscalls",
        words="Answer as soon as a syscall has ended",
        scope="agent",
        query=WaitQuery,
        answers={
            200: Answer(words="It has ended", kind=SyscallView, example=FINISHED),
            202: Answer(words="It has not, by then", kind=SyscallView, example=QUEUED),
        },
        errors=(404,),
    ),
    Operation(
        method="POST",
        path="/v1/syscalls/{id}/cancel",
        tag="Syscalls",
        words="End a syscall; one that has ended stays as it is",
        scope="agent",
        answers={200: Answer(words="The syscall as it is now", kind=SyscallView)},
        errors=(404,),
    ),
)
_EVENTS = {
    "Last-Event-ID": "The last event that was read: it goes on behind it",
}
EVENTS = (
    Operation(
        method="GET",
        path="/v1/syscalls/{id}/events",
        tag="Syscalls",
        words="Tell of a syscall as it goes on: its chunks from the first on, and then its reply",
        more="Numbered, so that a reader that was cut goes on where it was, at any process.",
        scope="agent",
        headers=_EVENTS,
        answers={
            200: Answer(words="Server-sent events", media="text/event-stream"),
            204: Answer(words="All of it was read", media=""),
        },
        errors=(404,),
    ),
)
_SESSION = "A client's session"
_ID = "5f0c2a51b7d94e03a6c8d1e2f3a4b5c6"
SESSION = (
    Operation(
        method="GET",
        path=wire.EVENTS,
        tag=_SESSION,
        words="Begin a session: a hello, then replies and chunks as they come",
        more="What the SDK's HTTP transport speaks; `POST /v1/syscalls` asks for less.",
        scope="agent",
        answers={200: Answer(words="Server-sent events", media="text/event-stream")},
    ),
    Operation(
        method="POST",
        path=wire.SUBMIT,
        tag=_SESSION,
        words="Publish syscalls of one module, under ids of the agent's own",
        scope="agent",
        body=wire.Submit,
        body_example={"session": "s1", "syscalls": []},
        answers={200: Answer(words="What came of each", kind=Json)},
        errors=(404, 409),
    ),
    Operation(
        method="POST",
        path=wire.ATTACH,
        tag=_SESSION,
        words="Hear of syscalls, or fetch their replies",
        scope="agent",
        body=wire.Attach,
        body_example={"session": "s1", "asks": [{"id": _ID}]},
        answers={200: Answer(words="How each stands", kind=Json)},
        errors=(404, 409),
    ),
    Operation(
        method="POST",
        path=wire.CANCEL,
        tag=_SESSION,
        words="End syscalls of one module",
        scope="agent",
        body=wire.Cancel,
        body_example={"ids": [_ID], "module": "llm"},
        answers={200: Answer(words="Which of them ended by that", kind=wire.Cancellations)},
    ),
    Operation(
        method="GET",
        path=wire.STATUS,
        tag=_SESSION,
        words="Show where a syscall stands",
        scope="agent",
        query=StatusQuery,
        answers={200: Answer(words="Where it stands", kind=CallStatus | None)},
        errors=(404,),
    ),
)
HEALTH = (
    Operation(
        method="GET",
        path="/healthz",
        tag="Health",
        words="Tell that the process lives",
        scope=None,
        answers={200: Answer(words="It does", kind=Health, example={"status": "ok"})},
    ),
    Operation(
        method="GET",
        path="/readyz",
        tag="Health",
        words="Tell whether the kernel can answer: Redis, Postgres, scheduler, workers",
        scope=None,
        answers={
            200: Answer(words="It can", kind=Readiness),
            503: Answer(words="A part of it cannot", kind=Readiness),
        },
    ),
)
DESCRIPTION = (
    Operation(
        method="GET",
        path="/openapi.json",
        tag="This description",
        words="Describe the API to programs: OpenAPI 3.1",
        scope=None,
        answers={200: Answer(words="The description")},
    ),
    Operation(
        method="GET",
        path="/reference",
        tag="This description",
        words="Describe the API to people",
        scope=None,
        answers={200: Answer(words="A page", media="text/html")},
    ),
    Operation(
        method="GET",
        path="/reference.css",
        tag="This description",
        words="How that page looks",
        scope=None,
        answers={200: Answer(words="A style sheet", media="text/css")},
    ),
)
