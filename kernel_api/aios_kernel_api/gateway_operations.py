"""Operations of the gateway's routes: OpenAI's API, and Anthropic's."""

from typing import Any

from aios_kernel_api.gateway.chat_answer import ChatCompletion
from aios_kernel_api.gateway.chat_request import ChatRequest
from aios_kernel_api.gateway.completions import Completion, CompletionRequest
from aios_kernel_api.gateway.embeddings import EmbeddingRequest, Embeddings
from aios_kernel_api.gateway.message_request import CountRequest, MessageRequest
from aios_kernel_api.gateway.models import Model, Models
from aios_kernel_api.gateway.openai_errors import OpenAIError
from aios_kernel_api.gateway.response_request import InputRequest, ResponseRequest
from aios_kernel_api.gateway.responses import ItemsQuery
from aios_kernel_api.openapi import Json
from aios_kernel_api.operations import Answer, NoQuery, Operation

JSON = "application/json"
_OPENAI = "OpenAI's API"
_ANTHROPIC = "Anthropic's API"
_ERRORS = (404, 409, 412, 423, 500, 502, 504)  # what the syscall behind it may end with
_HELLO = [{"role": "user", "content": "Name three rivers."}]


def _post(
    path: str,
    words: str,
    body: object,
    example: object,
    kind: object,
    **more: Any,  # noqa: ANN401
) -> Operation:
    return Operation(
        **{
            "method": "POST",
            "path": path,
            "tag": _OPENAI,
            "words": words,
            "scope": "agent",
            "body": body,
            "body_example": example,
            "answers": {200: Answer(words="The answer", kind=kind, streams="stream" in words)},
            "errors": _ERRORS,
            "error": OpenAIError,
            "error_media": JSON,
            **more,
        }
    )


def _of_response(method: Any, rest: str, words: str, query: Any = NoQuery) -> Operation:  # noqa: ANN401
    return Operation(
        method=method,
        path=f"/v1/responses/{{id}}{rest}",
        tag=_OPENAI,
        words=words,
        scope="agent",
        query=query,
        answers={200: Answer(words="The answer", kind=Json)},
        errors=_ERRORS,
        error=OpenAIError,
        error_media=JSON,
    )


GATEWAY = (
    _post(
        "/v1/responses",
        "Answer in a conversation that the kernel keeps; also as a stream",
        ResponseRequest,
        {"model": "any", "input": "Name three rivers."},
        Json,
    ),
    _post(
        "/v1/responses/input_tokens",
        "Count what a response would read",
        InputRequest,
        {"model": "any", "input": "Name three rivers."},
        Json,
    ),
    _of_response("GET", "", "Show a response"),
    _of_response("DELETE", "", "Delete a response"),
    _of_response("POST", "/cancel", "End a response that is made in the background"),
    _of_response("GET", "/input_items", "List what a response has read", ItemsQuery),
    _post(
        "/v1/chat/completions",
        "Answer a conversation; also as a stream",
        ChatRequest,
        {"model": "any", "messages": _HELLO},
        ChatCompletion,
    ),
    _post(
        "/v1/completions",
        "Go on with a text; also as a stream",
        CompletionRequest,
        {"model": "any", "prompt": "Three rivers:", "max_tokens": 32},
        Completion,
    ),
    _post(
        "/v1/embeddings",
        "Return the vectors of texts",
        EmbeddingRequest,
        {"model": "any", "input": ["a river"]},
        Embeddings,
    ),
    Operation(
        method="GET",
        path="/v1/models",
        tag=_OPENAI,
        words="List the models",
        scope="agent",
        answers={200: Answer(words="Models", kind=Models)},
        error=OpenAIError,
        error_media=JSON,
    ),
    Operation(
        method="GET",
        path="/v1/models/{id:path}",
        tag=_OPENAI,
        words="Show one model",
        scope="agent",
        answers={200: Answer(words="The model", kind=Model)},
        errors=(404,),
        error=OpenAIError,
        error_media=JSON,
    ),
    _post(
        "/v1/messages",
        "Answer a conversation; also as a stream",
        MessageRequest,
        {"model": "any", "max_tokens": 64, "messages": _HELLO},
        Json,
        tag=_ANTHROPIC,
        error=Json,
    ),
    _post(
        "/v1/messages/count_tokens",
        "Count what a message would read",
        CountRequest,
        {"model": "any", "messages": _HELLO},
        Json,
        tag=_ANTHROPIC,
        error=Json,
    ),
)
