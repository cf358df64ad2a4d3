"""The gateway's routes, and what becomes of each field of each request. A route has its table."""

from aios_kernel_api.gateway import chat, completions, embeddings, models
from aios_kernel_api.gateway.chat_request import CHAT_FIELDS
from aios_kernel_api.gateway.completions import COMPLETION_FIELDS
from aios_kernel_api.gateway.embeddings import EMBEDDING_FIELDS
from aios_kernel_api.gateway.fields import Fields

OPENAI_ROUTES = [*chat.ROUTES, *completions.ROUTES, *embeddings.ROUTES, *models.ROUTES]

# By the path of a route that reads a body.
TABLES: dict[str, Fields] = {
    "/v1/chat/completions": CHAT_FIELDS,
    "/v1/completions": COMPLETION_FIELDS,
    "/v1/embeddings": EMBEDDING_FIELDS,
}
