"""`GET /v1/models` and `/v1/models/{id}`: the kernel's cores, by their names and aliases.

One answer serves the clients of both APIs: each finds the fields that it looks for.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_broker.contract.cores import CoreCard
from aios_broker.contract.errors import NotFound
from aios_kernel_api.gateway.asking import unless_gone
from aios_kernel_api.gateway.cores import first_of
from aios_kernel_api.gateway.state import gateway_of

CREATED_S = 0  # cores have no birthday
CREATED_AT = datetime.fromtimestamp(CREATED_S, UTC).isoformat().replace("+00:00", "Z")


class Model(Struct, frozen=True):
    """A core, under one of its names."""

    id: str
    display_name: str
    context_length: int | None
    created: int = CREATED_S
    created_at: str = CREATED_AT
    object: str = "model"
    type: str = "model"
    owned_by: str = "aios"


class Models(Struct, frozen=True):
    """All of them, on one page."""

    data: list[Model]
    first_id: str | None
    last_id: str | None
    object: str = "list"
    has_more: bool = False


async def list_models(request: Request) -> Response:
    """Return the cores that are known, each by its name and then by its aliases."""
    views = await gateway_of(request).cores.views()
    found = models_of(view.card for view in views)
    ids = [model.id for model in found]
    page = Models(found, ids[0] if ids else None, ids[-1] if ids else None)
    return Response(msgspec.json.encode(page), media_type="application/json")


async def get_model(request: Request) -> Response:
    """Return one of them.

    Raises:
        NotFound: there is none; a request that names it goes to the default all the same.
    """
    name = request.path_params["id"]
    views = await gateway_of(request).cores.views()
    card = first_of((view.card for view in views), name)
    if card is None:
        raise NotFound(
            "no core has this name, alias or model",
            field="model",
            remedy="GET /v1/models lists them; a request that names another goes to the default",
        )
    return Response(msgspec.json.encode(_model(name, card)), media_type="application/json")


def models_of(cards: Iterable[CoreCard]) -> list[Model]:
    """Return what clients may name."""
    known = list(cards)
    named = [_model(card.name, card) for card in known]
    seen = {model.id for model in named}
    for card in known:
        for alias in card.aliases:
            if alias not in seen:
                seen.add(alias)
                named.append(_model(alias, card))
    return named


def _model(name: str, card: CoreCard) -> Model:
    return Model(name, card.model, card.context_tokens or None)


ROUTES = [
    Route("/v1/models", unless_gone(list_models)),
    Route("/v1/models/{id:path}", unless_gone(get_model)),
]
