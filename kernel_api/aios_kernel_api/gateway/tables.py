"""The gateway's routes, and what becomes of each field of each request. A route has its table."""

from aios_kernel_api.gateway import (
    chat,
    completions,
    embeddings,
    messages,
    models,
    responses,
)
from aios_kernel_api.gateway.chat_request import CHAT_FIELDS
from aios_kernel_api.gateway.completions import COMPLETION_FIELDS
from aios_kernel_api.gateway.embeddings import EMBEDDING_FIELDS
from aios_kernel_api.gateway.fields import Fields
from aios_kernel_api.gateway.message_request import COUNT_FIELDS, MESSAGE_FIELDS
from aios_kernel_api.gateway.response_request import INPUT_FIELDS, RESPONSE_FIELDS

OPENAI_ROUTES = [
    *chat.ROUTES,
    *completions.ROUTES,
    *embeddings.ROUTES,
    *models.ROUTES,
    *responses.ROUTES,
]
ANTHROPIC_ROUTES = messages.ROUTES

# By the path of a route that reads a body.
TABLES: dict[str, Fields] = {
    "/v1/chat/completions": CHAT_FIELDS,
    "/v1/completions": COMPLETION_FIELDS,
    "/v1/embeddings": EMBEDDING_FIELDS,
    "/v1/responses": RESPONSE_FIELDS,
    "/v1/responses/input_tokens": INPUT_FIELDS,
    "/v1/messages": MESSAGE_FIELDS,
    "/v1/messages/count_tokens": COUNT_FIELDS,
}
