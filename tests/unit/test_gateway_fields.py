"""Nothing that a request asks for is dropped in silence: the tables, and what reads them."""

import msgspec
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import input_token_count_params, response_create_params

from aios_broker.contract.errors import InvalidSyscall
from aios_kernel_api.gateway.chat_request import CHAT_FIELDS, ChatRequest
from aios_kernel_api.gateway.completions import COMPLETION_FIELDS, CompletionRequest
from aios_kernel_api.gateway.embeddings import EMBEDDING_FIELDS, EmbeddingRequest
from aios_kernel_api.gateway.fields import (
    MOST_REPORTED,
    Fields,
    headers_of,
    ignored,
    kept,
    not_kept,
    refused,
    reported,
    rows,
)
from aios_kernel_api.gateway.message_request import (
    COUNT_FIELDS,
    MESSAGE_FIELDS,
    CountRequest,
    MessageRequest,
)
from aios_kernel_api.gateway.response_request import (
    INPUT_FIELDS,
    RESPONSE_FIELDS,
    InputRequest,
    ResponseRequest,
)
from aios_kernel_api.gateway.tables import ANTHROPIC_ROUTES, OPENAI_ROUTES, TABLES
from tests.lanes import gateway_fields

TABLE: Fields = {
    "said": kept("as it is", {"deep": kept("as it is"), "odd": reported("no")}),
    "free": kept("anything"),
    "left": reported("no", "usual"),
    "bad": refused("do otherwise", False),
    "hint": ignored("a hint"),
}


def test_what_is_kept_or_ignored_is_not_told() -> None:
    assert not_kept(TABLE, {"said": {"deep": 1}, "free": {"x": 1}, "hint": 3}) == ()
    assert headers_of(()) == {}


def test_what_is_left_out_is_told_by_its_path_once() -> None:
    request = {"said": [{"odd": 1}, {"odd": 2, "new": 3}, "text"], "left": 1, "unheard": {}}
    found = not_kept(TABLE, request)
    assert found == ("said.odd", "said.new", "left", "unheard")
    assert headers_of(found) == {"x-aios-not-kept": "said.odd, said.new, left, unheard"}


def test_null_and_the_usual_ask_for_nothing() -> None:
    assert not_kept(TABLE, {"left": "usual", "bad": False, "unheard": None}) == ()
    assert not_kept(TABLE, {"left": None, "bad": None}) == ()


def test_what_is_refused_names_the_field_and_the_remedy() -> None:
    with pytest.raises(InvalidSyscall) as caught:
        not_kept(TABLE, {"said": {}, "bad": True})
    assert (caught.value.field, caught.value.remedy) == ("bad", "do otherwise")


def test_a_clients_own_names_cannot_break_out_of_the_header() -> None:
    request = {f"x{n}\r\nset-cookie: a=b,": 1 for n in range(MOST_REPORTED + 5)}
    found = not_kept(TABLE, request)
    assert len(found) == MOST_REPORTED
    assert all(set(name) <= set("x0123456789_setcookiab.-") for name in found)


def test_rows_show_every_field() -> None:
    shown = " ".join(path for path, _ in rows(TABLE))
    assert shown == "said said.deep said.odd free left bad hint"


@pytest.mark.parametrize(
    ("table", "request_type"),
    [
        (CHAT_FIELDS, ChatRequest),
        (COMPLETION_FIELDS, CompletionRequest),
        (EMBEDDING_FIELDS, EmbeddingRequest),
        (RESPONSE_FIELDS, ResponseRequest),
        (INPUT_FIELDS, InputRequest),
        (MESSAGE_FIELDS, MessageRequest),
        (COUNT_FIELDS, CountRequest),
    ],
)
def test_exactly_what_is_kept_is_read(table: Fields, request_type: type[msgspec.Struct]) -> None:
    kept_fields = {name for name, one in table.items() if one.fate == "kept"}
    assert kept_fields == set(request_type.__struct_fields__)


@pytest.mark.parametrize(
    ("table", "params"),
    [
        (CHAT_FIELDS, chat_params.CompletionCreateParamsStreaming),
        (COMPLETION_FIELDS, completion_create_params.CompletionCreateParamsStreaming),
        (EMBEDDING_FIELDS, embedding_create_params.EmbeddingCreateParams),
        (RESPONSE_FIELDS, response_create_params.ResponseCreateParamsStreaming),
        (INPUT_FIELDS, input_token_count_params.InputTokenCountParams),
        (MESSAGE_FIELDS, message_create_params.MessageCreateParamsStreaming),
        (COUNT_FIELDS, message_count_tokens_params.MessageCountTokensParams),
    ],
)
def test_every_field_of_the_official_client_has_its_row(table: Fields, params: type) -> None:
    theirs = {name for each in params.__mro__ for name in getattr(each, "__annotations__", ())}
    assert theirs - set(table) == set()


def test_every_route_that_reads_a_body_has_its_table() -> None:
    routes = [*OPENAI_ROUTES, *ANTHROPIC_ROUTES]
    reads = {each.path for each in routes if "POST" in (each.methods or ())}
    reads.remove("/v1/responses/{id}/cancel")  # which has none
    assert reads == set(TABLES)


def test_the_page_shows_the_tables() -> None:
    assert gateway_fields.written().endswith(gateway_fields.section())
