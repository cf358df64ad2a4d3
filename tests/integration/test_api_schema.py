"""Requests made of the description, good and bad: no 5xx, and no status that it does not name."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from aios_kernel_api.rest.description import operations, whole_document
from tests.api_scene import ApiScene, api_scene, bearer
from tests.conftest import RunningPostgres

SCHEMA = schemathesis.openapi.from_dict(whole_document())
OPERATORS = {one.name for one in operations() if one.scope == "operator"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
PATIENCE_S = 0.5


@pytest.fixture(scope="module")
def brief_api(postgres_server: RunningPostgres) -> Iterator[ApiScene]:
    """A kernel whose answers end soon, where a request sets no limit."""
    environ = {
        "AIOS_LLM_CONTEXT_TOKENS": "1024",  # a form may go on to the end of it
        "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": "1000",
        "AIOS_SIMULATED_CORE_END_PROBABILITY": "0.2",
    }
    with api_scene(postgres_server, **environ) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@SCHEMA.parametrize()
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_what_comes_back_is_described(brief_api: ApiScene, case: Case[Any]) -> None:
    name = f"{case.method} {case.operation.path}"
    api = brief_api
    token = api.operator if name in OPERATORS else api.agent
    wait_s = (case.query or {}).get("wait_s")
    if isinstance(wait_s, int | float) and wait_s > PATIENCE_S:
        case.query["wait_s"] = PATIENCE_S  # what is generated may run for minutes
    response = case.call(base_url=api.url, headers=bearer(token))
    case.validate_response(response, checks=CHECKS)
