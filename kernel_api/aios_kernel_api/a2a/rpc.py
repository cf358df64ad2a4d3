"""A2A by JSON-RPC 2.0: one address for whichever agent a token is of, and one for each agent.

    POST /a2a                                               a call of a method
    POST /a2a/agents/{agent}                                the same, of that agent alone
    GET  /.well-known/agent-card.json                       who answers here; no token
    GET  /a2a/agents/{agent}/.well-known/agent-card.json    who that agent is

A call that could be read is answered with status 200, also where it fails; a stream is server-sent
events, each of them an answer to the call.
"""

import logging
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_broker.client.http_messages import KEEP_ALIVE_S
from aios_broker.contract.errors import KernelError, UnknownAgent
from aios_broker.contract.syscall import decode_failure
from aios_broker.retry import now_s
from aios_kernel_api.a2a.cards import ENDPOINT, agent_card, card_response, public_card
from aios_kernel_api.a2a.methods import METHODS, Call, Method, Stream
from aios_kernel_api.a2a.model import AgentCard
from aios_kernel_api.a2a.refusals import Refusal, RpcFailure, invalid, rpc_error_of
from aios_kernel_api.bodies import in_turn, read_body, read_plain
from aios_kernel_api.events import KEEP_ALIVE, EventStream, Guard, Source
from aios_kernel_api.gateway.asking import unless_gone
from aios_kernel_api.identity import caller_of
from aios_kernel_api.kernel import kernel_of
from aios_kernel_api.openapi import Json
from aios_kernel_api.operations import Answer, Operation
from aios_kernel_api.problems import told

logger = logging.getLogger(__name__)

CARD = "/.well-known/agent-card.json"
OF_AGENT = ENDPOINT + "/agents/{agent:path}"
VERSION_HEADER = "a2a-version"
_VERSION = re.compile(r"1\.0(\.[0-9]+)?")
Id = Annotated[str, Meta(max_length=256)] | int | float  # each event of a stream has it


class RpcRequest(Struct, frozen=True):
    """A call of a method."""

    jsonrpc: Literal["2.0"]
    method: str
    id: Id
    params: dict[str, Any] = {}


class RpcResult(Struct, frozen=True):
    """The answer to a call."""

    id: Id
    result: Any
    jsonrpc: Literal["2.0"] = "2.0"


async def call(request: Request) -> Response:
    """Answer a call of a method."""
    _refuse_other(request)
    data = await read_body(request)
    rpc_id: Id | None = None
    try:
        async with in_turn(request):
            raw = _read(data)
            rpc_id = _id_in(raw)
            asked = _request_of(raw)
            _check_version(request)
            method = _method_of(asked)
            params = _params_of(asked, method)
        answer = await method.serve(Call(request, kernel_of(request), caller_of(request)), params)
    except (Refusal, KernelError) as error:
        return _json(_failure(error, rpc_id))
    if isinstance(answer, Stream):
        return EventStream(_events(request, answer, asked.id), answer.held)
    return _json(RpcResult(asked.id, answer))


def _method_of(asked: RpcRequest) -> Method:
    method = METHODS.get(asked.method)
    if method is None:
        raise Refusal(
            "METHOD_NOT_FOUND",
            f"there is no method {asked.method[:64]!r}",
            f"use one of {', '.join(METHODS)}",
        )
    return method


def _params_of(asked: RpcRequest, method: Method) -> Struct:
    try:
        params: Struct = msgspec.convert(asked.params, method.params)
    except msgspec.ValidationError as error:
        words, field = decode_failure(error)
        raise invalid(field or "params", words, "see a2a.proto of version 1.0") from error
    return params


async def _events(request: Request, stream: Stream, rpc_id: Id) -> Source:
    """Yield what is told of a task, each as an answer to the call."""
    guard, said_s = Guard(request), now_s()
    try:
        async for told_now in stream.told:
            await guard.check()
            if told_now:
                yield b"".join(_event(RpcResult(rpc_id, each)) for each in told_now)
                said_s = now_s()
            elif now_s() - said_s >= KEEP_ALIVE_S:
                yield KEEP_ALIVE
                said_s = now_s()
    except (Refusal, KernelError) as error:
        yield _event(_failure(error, rpc_id))


def _read(data: bytes) -> Json:
    """Return the JSON object of a call.

    Raises:
        Refusal: it is none.
        InvalidSyscall: it is too deep, too large, ambiguous, or has a NUL character.
    """
    try:
        raw = read_plain(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal("JSON_PARSE", f"this is no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise _no_request("it is no object", "send one call at a time")
    return raw


def _id_in(raw: Json) -> Id | None:
    try:
        found: Id = msgspec.convert(raw.get("id"), Id)
    except msgspec.ValidationError:
        return None
    return found


def _request_of(raw: Json) -> RpcRequest:
    try:
        return msgspec.convert(_without_nulls(raw), RpcRequest)
    except msgspec.ValidationError as error:
        raise _no_request(str(error), "send jsonrpc 2.0 with an id, a method and params") from error


def _without_nulls(value: object) -> object:
    """Return a call without the fields that are null: ProtoJSON takes them for left out."""
    if isinstance(value, dict):
        return {
            name: each if name == "data" else _without_nulls(each)  # that is the client's own
            for name, each in value.items()
            if each is not None
        }
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _no_request(why: str, remedy: str) -> Refusal:
    return Refusal("INVALID_REQUEST", f"this is no call of JSON-RPC: {why}", remedy)


def _check_version(request: Request) -> None:
    """Return when the call is of the version that is spoken here; one that says none is of 0.3."""
    query = request.query_params.get("A2A-Version", "")
    given = (request.headers.get(VERSION_HEADER) or query).strip()
    if not _VERSION.fullmatch(given):
        raise Refusal(
            "VERSION_NOT_SUPPORTED",
            f"version {given[:16] or '0.3 (none was named)'} of A2A is not spoken here",
            "send the header A2A-Version: 1.0",
        )


def _refuse_other(request: Request) -> None:
    """Return when the path names no agent, or the token's own.

    Raises:
        UnknownAgent: it names another one.
    """
    named = request.path_params.get("agent")
    caller = caller_of(request)
    if named is not None and (named != caller.agent or caller.scope == "operator"):
        raise UnknownAgent(
            f"the token is not one of an agent {str(named)[:128]!r}",
            field="agent",
            remedy=f"use a token of that agent, or {ENDPOINT}",
        )


def _failure(error: Refusal | KernelError, rpc_id: Id | None) -> RpcFailure:
    if isinstance(error, KernelError):
        hidden = told(error)
        if hidden is not error:
            logger.warning("a call of A2A: %s", error)
            hidden.remedy = "call again: a message under the same messageId, or SubscribeToTask"
        error = hidden
    return RpcFailure(rpc_error_of(error), rpc_id)


def _json(answer: RpcResult | RpcFailure) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _event(answer: RpcResult | RpcFailure) -> bytes:
    return b"data: " + msgspec.json.encode(answer) + b"\n\n"


async def well_known(request: Request) -> Response:
    """Say who answers here."""
    return card_response(request, public_card(request), is_public=True)


async def card_of_agent(request: Request) -> Response:
    """Say who an agent is, to its own token."""
    _refuse_other(request)
    return card_response(request, agent_card(request, caller_of(request).agent), is_public=False)


_TAG = "Agent2Agent"
_CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "SendMessage",
    "params": {
        "message": {
            "messageId": "0d6b4a1e-7c1f-4c64-9b0e-8f0a5f1f3a52",
            "role": "ROLE_USER",
            "parts": [{"text": "Name three rivers."}],
        }
    },
}
_TAG_HEADER = {"ETag": "Names exactly this card"}
_CARD_ANSWERS = {
    200: Answer(words="The card", kind=AgentCard, headers=_TAG_HEADER),
    304: Answer(words="It is what is known", media="", headers=_TAG_HEADER),
}
_MORE = (
    "JSON-RPC 2.0 with the methods of A2A 1.0 (header `A2A-Version: 1.0`). A call that could be "
    "read has status 200, also where it fails: `error` says why."
)


def _rpc(path: str, words: str) -> Operation:
    return Operation(
        method="POST",
        path=path,
        tag=_TAG,
        words=words,
        more=_MORE,
        scope="agent",
        body=RpcRequest,
        body_example=_CALL,
        answers={200: Answer(words="The answer, or a stream of answers", kind=Json, streams=True)},
        errors=(404,),
        error=RpcFailure,
        error_media="application/json",
    )


OPERATIONS = (
    _rpc(ENDPOINT, "Call a method of A2A, as the agent of the token"),
    _rpc(OF_AGENT, "Call a method of A2A, as this agent"),
    Operation(
        method="GET",
        path=CARD,
        tag=_TAG,
        words="Say who answers here: the agent card",
        scope=None,
        answers=_CARD_ANSWERS,
    ),
    Operation(
        method="GET",
        path=OF_AGENT + CARD,
        tag=_TAG,
        words="Say who an agent is: its card, for its own token",
        scope="agent",
        answers=_CARD_ANSWERS,
        errors=(404,),
        error=RpcFailure,
        error_media="application/json",
    ),
)
ROUTES = [
    Route(OF_AGENT + CARD, card_of_agent),
    Route(ENDPOINT, unless_gone(call), methods=["POST"]),
    Route(OF_AGENT, unless_gone(call), methods=["POST"]),
]
PUBLIC_ROUTES = [Route(CARD, well_known)]
