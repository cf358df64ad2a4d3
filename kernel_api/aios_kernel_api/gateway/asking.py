"""From a request of another API to a syscall of its agent: who asks, and under which labels."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from msgspec import DecodeError, Struct, json
from starlette.requests import Request
from starlette.responses import Response

from aios_broker.client.pending import Pending
from aios_broker.contract.llm import LlmBody
from aios_broker.contract.syscall import Syscall, check_syscall
from aios_broker.queues.quota import AgentStanding
from aios_kernel_api.bodies import ClientGone, decode_again, in_turn, read_body, read_plain
from aios_kernel_api.gateway import limits
from aios_kernel_api.gateway.fields import Fields, headers_of, not_kept
from aios_kernel_api.gateway.labels import NICE_HEADER, PROGRAM_HEADER, Labels, labels_of
from aios_kernel_api.gateway.openai_errors import SYSCALL_HEADER
from aios_kernel_api.gateway.state import gateway_of
from aios_kernel_api.identity import Caller, caller_of, require_agent
from aios_kernel_api.kernel import Kernel, kernel_of

MOST_SHOWN = 8  # syscalls that one header names
R = TypeVar("R", bound=Struct)
_fields: json.Decoder[Mapping[str, object]] = json.Decoder(dict[str, object])


@dataclass(frozen=True, slots=True)
class Read(Generic[R]):
    """A request's body, and the paths of what it asks for and does not get."""

    body: R
    not_kept: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """What all syscalls of one request have in common."""

    kernel: Kernel
    caller: Caller
    labels: Labels
    nice: int  # as far as the agent may ask for it
    standing: AgentStanding
    not_kept: tuple[str, ...]

    def new_id(self, number: int = 0) -> str:
        """Return the id of a syscall; `number`: which of the request's, where it makes several."""
        ids, key = self.kernel.session.ids(self.caller.owner), self.labels.key
        if key is None:
            return ids.fresh()
        return ids.from_key(f"{key}\x1f{number}" if number else key)

    def submit(self, body: LlmBody, number: int = 0, *, syscall_id: str | None = None) -> Pending:
        """Publish a syscall; `syscall_id`: where its id had to be known before.

        Raises:
            InvalidSyscall: the contract does not allow it; `field` is its path.
        """
        syscall = Syscall(
            id=syscall_id or self.new_id(number),
            agent=self.caller.agent,
            tenant=self.caller.tenant,
            token=self.caller.token,
            body=body,
            program=self.labels.program,
            nice=self.nice,
            deadline_s=self.labels.deadline_s,
            traceparent=self.caller.traceparent,
        )
        return self.kernel.session.submit(check_syscall(syscall))

    def headers(self, *calls: Pending) -> dict[str, str]:
        """Return what an answer says beside its results."""
        return {
            SYSCALL_HEADER: ", ".join(each.id for each in calls[:MOST_SHOWN]),
            PROGRAM_HEADER: self.labels.program,
            **limits.headers_of(self.standing),
            **headers_of(self.not_kept),
        }


async def read(request: Request, fields: Fields, decoder: json.Decoder[R]) -> Read[R]:
    """Return the body of a request, held against its table.

    Raises:
        InvalidSyscall: it is none, or asks for what is refused; `field` is its path.
    """
    data = await read_body(request)
    async with in_turn(request):
        left_out = not_kept(fields, _plain(data))
        return Read(decode_again(data, decoder), left_out)


def _plain(data: bytes) -> Mapping[str, object]:
    try:
        found = read_plain(data)
    except (DecodeError, UnicodeDecodeError):
        return decode_again(data, _fields)  # raises, and says where it is wrong
    return found if isinstance(found, dict) else decode_again(data, _fields)


async def asking(
    request: Request,
    *,
    left_out: tuple[str, ...] = (),
    metadata: Mapping[str, object] | None = None,
    known_program: str | None = None,
    priority: int | None = None,
) -> Ask:
    """Return who asks by a request, and under which labels. See `labels_of`.

    Raises:
        AccessDenied: an operator does, who is no agent.
        InvalidSyscall: a label that cannot be.
    """
    gateway, caller = gateway_of(request), caller_of(request)
    owner = require_agent(caller)
    labels = labels_of(
        request.headers,
        gateway.trees,
        f"{owner.tenant} {owner.agent}",
        metadata=metadata,
        known_program=known_program,
        priority=priority,
    )
    standing = await gateway.standings.of(owner)
    nice = limits.capped(labels.nice, standing)
    if nice != labels.nice:
        left_out = (*left_out, NICE_HEADER if NICE_HEADER in request.headers else "priority")
    return Ask(kernel_of(request), caller, labels, nice, standing, left_out)


Handler = Callable[[Request], Awaitable[Response]]


def unless_gone(handler: Handler) -> Handler:
    """Return a route that ends quietly where its client has left."""

    async def serve(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientGone:
            return Response(status_code=499)  # nobody reads it

    serve.__doc__ = handler.__doc__
    serve.__name__ = handler.__name__
    return serve
