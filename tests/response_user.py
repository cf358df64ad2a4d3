"""Who asks for responses, by the official client."""

from __future__ import annotations

from typing import Any

from openai import OpenAI
from openai.types.responses import Response

from tests.api_scene import ApiScene

RESPONSES = "/v1/responses"


def client_of(api: ApiScene, token: str | None = None) -> OpenAI:
    return OpenAI(base_url=f"{api.url}/v1", api_key=token or api.agent, max_retries=0)


def made(client: OpenAI, **options: Any) -> Response:  # noqa: ANN401
    whole = {"model": "x", "input": "hello", "max_output_tokens": 7, **options}
    response = client.responses.create(**whole)
    assert isinstance(response, Response)
    return response
