"""What is kept of responses, and the conversations that they stand in.

A conversation is a context of the kernel: a response goes on with it in place, where it is the
first to follow the one before under the same instructions, and takes a copy otherwise. A response
that nothing follows, and that somebody waits for, has none: it is its own conversation.
"""

from dataclasses import dataclass

import msgspec
from msgspec import Struct

from aios_broker.contract.errors import InvalidSyscall, NotFound, UnknownSyscall
from aios_broker.contract.llm import Message
from aios_broker.contract.names import Owner
from aios_broker.contract.reply import ChatResult, Reply, decode_reply
from aios_broker.contract.syscall import new_id
from aios_broker.queues.contexts import ContextOwner, Contexts
from aios_broker.queues.responses import Responses
from aios_kernel_api.gateway.items import Json, conversation_of
from aios_kernel_api.gateway.response_object import FINAL, PREFIX, Response, ended, stem_of
from aios_kernel_api.gateway.response_request import ResponseId
from aios_kernel_api.gateway.response_tools import Known
from aios_kernel_api.kernel import Kernel


class Record(Struct, frozen=True, omit_defaults=True):
    """What is kept of a response."""

    response: Response
    items: list[Json]  # of its input, as they are listed
    program: str
    instructions: str = ""
    names: dict[str, Known] = msgspec.field(default_factory=dict)
    one_call: bool = False
    context: str = ""  # that it stands in; empty: none
    end: int = 0  # how many messages that has once the answer is there
    is_cut: bool = False  # the answer there has calls that its agent has not heard of

    @property
    def is_over(self) -> bool:
        """Whether it has its answer, or never will."""
        return self.response.status in FINAL

    @property
    def syscall_id(self) -> str:
        """The syscall that makes its answer."""
        return stem_of(self.response.id)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a response stands: what its chat brings, after what is in its context already."""

    messages: tuple[Message, ...]
    context: str = ""
    before: int = 0  # messages that are in the context already

    @property
    def end(self) -> int:
        """How many messages the context has once the answer is there."""
        return self.before + len(self.messages) + 1


_decode = msgspec.json.Decoder(Record).decode
_encode = msgspec.json.encode


class Records:
    """The responses of one agent."""

    def __init__(self, kernel: Kernel, owner: Owner) -> None:
        self._kernel = kernel
        self.owner = owner
        self._kept = Responses(kernel.functions, kernel.keys)
        self._contexts = Contexts(kernel.functions, kernel.keys)

    async def find(self, response_id: str, field: str = "response_id") -> Record:
        """Return what is kept of a response.

        Raises:
            NotFound: there is none of that id, or it is another agent's.
        """
        found = None
        if _is_id(response_id):
            found = await self._kept.find(self.owner, response_id)
        if found is None:
            raise _unknown(response_id, field)
        return _decode(found)

    async def keep(self, record: Record, *, known: bool) -> None:
        """Keep a response; `known`: only if it was not deleted meanwhile."""
        freed = await self._kept.put(
            self.owner,
            record.response.id,
            _encode(record),
            context=record.context,
            known=known,
        )
        await self._forget(freed or ())

    async def drop(self, response_id: str) -> None:
        """Forget a response, and its context where no other one stands in it.

        Raises:
            NotFound: there is none of that id, or it is another agent's.
        """
        freed = await self._kept.drop(self.owner, response_id)
        if freed is None:
            raise _unknown(response_id, "response_id")
        await self._forget(freed)

    async def place(
        self,
        response_id: str,
        instructions: str,
        new: tuple[Message, ...],
        previous: Record | None,
        *,
        needs_context: bool,
    ) -> Place:
        """Return where a response is to stand.

        Args:
            response_id: Its own, which its context is named after where it gets one.
            instructions: What is said to the system.
            new: What its input says.
            previous: The response that it follows.
            needs_context: Whether its conversation has to be found without it.

        Raises:
            InvalidSyscall: the one before has no answer.
            NotFound: the conversation is gone, or was changed.
        """
        head = (Message("system", instructions),) if instructions else ()
        if previous is None:
            return Place((*head, *new), response_id if needs_context else "")
        if previous.response.status not in ("completed", "incomplete"):
            raise InvalidSyscall(
                f"that response is {previous.response.status}: it has no answer to go on with",
                field="previous_response_id",
                remedy="wait for it, or go on with the one before it",
            )
        goes_on = (
            needs_context
            and bool(previous.context)
            and not previous.is_cut
            and previous.instructions == instructions
        )
        if goes_on and await self._kept.claim(self.owner, previous.response.id, response_id):
            return Place(new, previous.context, previous.end)
        history = await self.conversation(previous)
        return Place((*head, *history, *new), response_id if needs_context else "")

    async def conversation(self, record: Record) -> tuple[Message, ...]:
        """Return the conversation up to a response, its instructions left out.

        Raises:
            NotFound: it is gone, or was changed.
        """
        answer = conversation_of(record.response.output, "output")
        if not record.context:
            return (*conversation_of(record.items), *answer)
        messages = (await self._contexts.peek(self._context(record.context)))[: record.end]
        if len(messages) < record.end:
            raise NotFound(
                "the conversation of that response is gone, or was changed",
                field="previous_response_id",
                remedy="send the whole conversation as input",
            )
        first = 1 if record.instructions else 0
        return (*messages[first:-1], *answer) if record.is_cut else messages[first:]

    async def looked_after(self, record: Record, now: int) -> Record:
        """Return a response as it stands now; once it has ended it is kept so."""
        if record.is_over:
            return record
        try:
            found = await self._kernel.find(record.syscall_id, self.owner)
        except UnknownSyscall:
            return await self.conclude(record, await self._lost(record), now)
        if found.reply is not None:
            return await self.conclude(record, decode_reply(found.reply), now)
        state = "queued" if found.state == "queued" else "in_progress"
        response = msgspec.structs.replace(record.response, status=state)
        return msgspec.structs.replace(record, response=response)

    async def conclude(
        self, record: Record, reply: Reply, now: int, *, known: bool = True
    ) -> Record:
        """Keep a response with its answer; return it."""
        done = concluded(record, reply, now)
        await self.keep(done, known=known)
        return done

    async def _lost(self, record: Record) -> Reply:
        """Return the reply of a response whose reply has expired: its context has the answer."""
        messages = await self._contexts.peek(self._context(record.context))
        if not record.context or len(messages) < record.end:
            error = UnknownSyscall("its answer has expired, or was lost with its worker")
            return Reply(record.syscall_id, error=error.to_wire())
        answer = messages[record.end - 1]
        return Reply(
            record.syscall_id,
            ChatResult(
                answer.content,
                "tool_calls" if answer.tool_calls else "stop",
                record.response.model,
                tool_calls=tuple(answer.tool_calls),
            ),
        )

    async def _forget(self, contexts: tuple[str, ...]) -> None:
        for name in contexts:
            await self._contexts.change(self._context(name), new_id(), "clear")

    def _context(self, name: str) -> ContextOwner:
        return ContextOwner(self.owner.tenant, self.owner.agent, name)


def concluded(record: Record, reply: Reply, now: int) -> Record:
    """Return a response with its answer."""
    response = ended(record.response, reply, record.names, one_call=record.one_call, now=now)
    result = reply.result
    is_cut = record.one_call and isinstance(result, ChatResult) and len(result.tool_calls) > 1
    return msgspec.structs.replace(record, response=response, is_cut=is_cut)


def _is_id(response_id: str) -> bool:
    try:
        msgspec.convert(response_id, ResponseId)
    except msgspec.ValidationError:
        return False
    return True


def _unknown(response_id: str, field: str) -> NotFound:
    shown = response_id[: len(PREFIX) + 32]
    return NotFound(
        f"there is no response {shown!r} of this agent's",
        field=field,
        remedy="the newest 500 are kept, for 7 days after the last; send the whole conversation",
    )
