"""A message of Anthropic's API: whole, as typed events, and the errors. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
from starlette.responses import Response

from aios_broker.contract.errors import ContextTooLong, KernelError
from aios_broker.contract.llm import ToolCall
from aios_broker.contract.reply import ChatResult, Chunk, Part, Reply, Usage
from aios_kernel_api.events import event
from aios_kernel_api.gateway.items import Json
from aios_kernel_api.gateway.openai_errors import SYSCALL_HEADER
from aios_kernel_api.gateway.streams import Events, chat_result_of
from aios_kernel_api.problems import headers_of, status_of, told

PIECE_CHARACTERS = 64  # of a call's input: it is known at once, and travels in pieces
PING = event(b'{"type": "ping"}', "ping")
TOO_LONG = "prompt is too long"  # what Claude Code looks for, to compact its conversation

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
encode = msgspec.json.encode


def message_of(reply: Reply, result: ChatResult, *, one_call: bool, thoughts: bool) -> Json:
    """Return a whole answer.

    Args:
        reply: Whose it is.
        result: What was generated.
        one_call: Of several calls the first one is the answer.
        thoughts: Whether the text of what the model thought is shown.
    """
    content: list[Json] = []
    if result.reasoning:
        content.append(_thoughts(result.reasoning if thoughts else ""))
    calls = _calls(result, one_call=one_call)
    if result.text or not calls:
        content.append({"type": "text", "text": result.text, "citations": None})
    content.extend({**_begun_call(call), "input": input_of(call.arguments)} for call in calls)
    return {
        **_head(reply.id, result.core or result.model),
        "content": content,
        **_ending(result),
        "usage": usage_of(result.usage),
    }


def usage_of(usage: Usage) -> Json:
    """Return what an answer used: tokens that were read before are counted apart."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "service_tier": "standard",
    }


def input_of(arguments: str) -> Json:
    """Return what a tool is called with: always an object."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        value = arguments
    return value if isinstance(value, dict) else {"value": value}


def error_of(error: KernelError) -> Json:
    """Return an error in Anthropic's words."""
    status = status_of(error)
    kind = _TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
    message = f"{error.field}: {error.message}" if error.field else error.message
    if isinstance(error, ContextTooLong):
        message = f"{TOO_LONG}: {error.message}"
    if error.remedy:
        message = f"{message} ({error.remedy})"
    return {"type": "error", "error": {"type": kind, "message": message}}


def anthropic_error(error: KernelError) -> Response:
    """Return the answer that tells of an error."""
    headers = headers_of(error)
    if error.syscall_id:
        headers[SYSCALL_HEADER] = error.syscall_id
    return Response(encode(error_of(error)), status_of(error), headers, "application/json")


@dataclass(slots=True)
class MessageEvents:
    """The typed events of one answer."""

    syscall_id: str
    model: str  # the core that is expected to answer
    one_call: bool = False
    thoughts: bool = True
    _has_begun: bool = False
    _open: Part | None = None  # what is being written
    _blocks: int = 0
    _said: set[Part] = field(default_factory=set)

    def told(self, events: Events) -> bytes:
        """Return what goes out for what was heard; a ping where it was nothing."""
        head = b"" if self._has_begun else b"".join(self._begin())
        if not events:
            return head + PING
        return head + b"".join(part for each in events for part in self._of(each))

    def _begin(self) -> Iterator[bytes]:
        self._has_begun = True
        message = {
            **_head(self.syscall_id, self.model),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_of(Usage()),
        }
        yield _event("message_start", message=message)

    def _of(self, heard: Chunk | Reply) -> Iterator[bytes]:
        if isinstance(heard, Chunk):
            yield from self._chunk(heard)
            return
        try:
            result = chat_result_of(heard)
        except KernelError as error:
            yield event(encode(error_of(told(error))), "error")
        else:
            yield from self._end(result)

    def _chunk(self, chunk: Chunk) -> Iterator[bytes]:
        part = chunk.part
        if part != self._open:
            if part in self._said:  # after a hole in the stream: a block is never written twice
                return
            yield from self._close()
            self._open = part
            self._said.add(part)
            empty = _thoughts("") if part == "reasoning" else {"type": "text", "text": ""}
            yield self._block("start", content_block=empty)
        if part == "answer":
            yield self._delta({"type": "text_delta", "text": chunk.text})
        elif self.thoughts:
            yield self._delta({"type": "thinking_delta", "thinking": chunk.text})

    def _end(self, result: ChatResult) -> Iterator[bytes]:
        yield from self._close()
        calls = _calls(result, one_call=self.one_call)
        if not calls and "answer" not in self._said:
            yield self._block("start", content_block={"type": "text", "text": ""})
            yield from self._stop()
        for call in calls:
            yield self._block("start", content_block={**_begun_call(call), "input": {}})
            text = encode(input_of(call.arguments)).decode()
            for first in range(0, len(text), PIECE_CHARACTERS):
                piece = text[first : first + PIECE_CHARACTERS]
                yield self._delta({"type": "input_json_delta", "partial_json": piece})
            yield from self._stop()
        yield _event("message_delta", delta=_ending(result), usage=usage_of(result.usage))
        yield _event("message_stop")

    def _close(self) -> Iterator[bytes]:
        part, self._open = self._open, None
        if part == "reasoning":
            yield self._delta({"type": "signature_delta", "signature": ""})
        if part is not None:
            yield from self._stop()

    def _stop(self) -> Iterator[bytes]:
        yield self._block("stop")
        self._blocks += 1

    def _delta(self, delta: Json) -> bytes:
        return self._block("delta", delta=delta)

    def _block(self, verb: str, **fields: object) -> bytes:
        return _event(f"content_block_{verb}", index=self._blocks, **fields)


def _event(kind: str, **fields: object) -> bytes:
    return event(encode({"type": kind, **fields}), kind)


def _head(syscall_id: str, model: str) -> Json:
    return {"id": f"msg_{syscall_id}", "type": "message", "role": "assistant", "model": model}


def _thoughts(text: str) -> Json:
    return {"type": "thinking", "thinking": text, "signature": ""}


def _begun_call(call: ToolCall) -> Json:
    return {"type": "tool_use", "id": call.id, "name": call.name}


def _calls(result: ChatResult, *, one_call: bool) -> Sequence[ToolCall]:
    return result.tool_calls[:1] if one_call else result.tool_calls


def _ending(result: ChatResult) -> Json:
    reason = {"length": "max_tokens", "tool_calls": "tool_use"}.get(
        result.finish_reason, "stop_sequence" if result.stopped_by else "end_turn"
    )
    return {"stop_reason": reason, "stop_sequence": result.stopped_by or None}
