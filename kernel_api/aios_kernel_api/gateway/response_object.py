"""A response, as OpenAI's API shows it: its items, what it used, how it ended. Pure."""

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from aios_broker.contract.errors import (
    Cancelled,
    ContextTooLong,
    ErrorBody,
    InvalidSyscall,
    QuotaExceeded,
    all_errors,
)
from aios_broker.contract.llm import ToolCall
from aios_broker.contract.reply import ChatResult, Reply, TokenLogprob, Usage
from aios_kernel_api.gateway.items import Json
from aios_kernel_api.gateway.response_tools import Known, free_text

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
PREFIX = "resp_"
FINAL: frozenset[Status] = frozenset(("completed", "incomplete", "failed", "cancelled"))


class Response(Struct, frozen=True):
    """A response. What its request said is returned with it."""

    id: str
    created_at: int  # Unix time
    status: Status
    model: str
    echo: Mapping[str, object]
    output: tuple[Json, ...] = ()
    usage: Json | None = None
    error: Json | None = None
    incomplete_details: Json | None = None
    completed_at: int | None = None

    def shown(self) -> Json:
        """Return it as it is sent."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": self.status,
            "completed_at": self.completed_at,
            "error": self.error,
            "incomplete_details": self.incomplete_details,
            "model": self.model,
            "output": list(self.output),
            "usage": self.usage,
            **self.echo,
        }


def stem_of(response_id: str) -> str:
    """Return what the ids of a response's items have of its own: its syscall's id."""
    return response_id.removeprefix(PREFIX)


def output_of(
    result: ChatResult, response_id: str, names: Mapping[str, Known], *, one_call: bool
) -> tuple[Json, ...]:
    """Return the items of an answer; `one_call`: of several calls the first one counts."""
    status = "incomplete" if result.finish_reason == "length" else "completed"
    stem = stem_of(response_id)
    calls = result.tool_calls[:1] if one_call else result.tool_calls
    items: list[Json] = []
    if result.reasoning:
        items.append(reasoning_item(stem, result.reasoning))
    if result.text or not calls:
        items.append(message_item(stem, result.text, status, result.logprobs))
    items.extend(call_item(stem, place, call, names) for place, call in enumerate(calls))
    return tuple(items)


def reasoning_item(stem: str, text: str | None) -> Json:
    """Return what the model thought; None: nothing of it is there yet."""
    content = [] if text is None else [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": f"rs_{stem}", "summary": [], "content": content}


def message_item(
    stem: str, text: str | None, status: str, logprobs: Sequence[TokenLogprob] = ()
) -> Json:
    """Return the message of an answer; None: nothing of it is there yet."""
    return {
        "type": "message",
        "id": f"msg_{stem}",
        "status": status,
        "role": "assistant",
        "content": [] if text is None else [text_part(text, logprobs)],
    }


def text_part(text: str, logprobs: Sequence[TokenLogprob] = ()) -> Json:
    """Return the content of a message."""
    told = [logprob(each) for each in logprobs]
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": told}


def call_item(
    stem: str, place: int, call: ToolCall, names: Mapping[str, Known], status: str = "completed"
) -> Json:
    """Return a call of a tool, under the name that its agent knows."""
    known = names.get(call.name) or Known(call.name)
    item: Json = {"call_id": call.id, "name": known.name, "status": status}
    if known.namespace is not None:
        item["namespace"] = known.namespace
    if known.is_custom:
        text = free_text(call.arguments)
        return {"type": "custom_tool_call", "id": f"ctc_{stem}_{place}", "input": text, **item}
    return {
        "type": "function_call",
        "id": f"fc_{stem}_{place}",
        "arguments": call.arguments,
        **item,
    }


def logprob(token: TokenLogprob) -> Json:
    """Return a token and those that might have stood there."""
    top = [
        {"token": each.text, "bytes": list(each.text.encode()), "logprob": each.logprob}
        for each in token.top
    ]
    own = {"token": token.text, "bytes": list(token.text.encode()), "logprob": token.logprob}
    return {**own, "top_logprobs": top}


def usage_of(usage: Usage) -> Json:
    """Return what an answer used."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }


def error_of(error: ErrorBody) -> Json:
    """Return why there is no answer, in the words that clients look for."""
    kind = all_errors().get(error.code)
    code = "server_error"
    if kind is ContextTooLong:
        code = "context_length_exceeded"
    elif kind is QuotaExceeded:
        code = "rate_limit_exceeded"
    elif kind is not None and issubclass(kind, InvalidSyscall):
        code = "invalid_prompt"
    message = f"{error.message}: {error.remedy}" if error.remedy else error.message
    return {"code": code, "message": message}


def is_cancelled(error: ErrorBody) -> bool:
    """Tell whether somebody ended it."""
    return error.code == Cancelled.code


def ended(
    begun: Response, reply: Reply, names: Mapping[str, Known], *, one_call: bool, now: int
) -> Response:
    """Return a response with its answer, or with the error that stands in its place."""
    result = reply.result
    if reply.error is not None or not isinstance(result, ChatResult):
        error = reply.error or ErrorBody("kernel-error", "the reply is no answer of a chat")
        cancelled = is_cancelled(error)
        return Response(
            id=begun.id,
            created_at=begun.created_at,
            status="cancelled" if cancelled else "failed",
            model=begun.model,
            echo=begun.echo,
            error=None if cancelled else error_of(error),
        )
    is_whole = result.finish_reason != "length"
    return Response(
        id=begun.id,
        created_at=begun.created_at,
        status="completed" if is_whole else "incomplete",
        model=result.core or result.model,
        echo=begun.echo,
        output=output_of(result, begun.id, names, one_call=one_call),
        usage=usage_of(result.usage) if result.usage.prompt_tokens else None,
        incomplete_details=None if is_whole else {"reason": "max_output_tokens"},
        completed_at=now if is_whole else None,
    )
