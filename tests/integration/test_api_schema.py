"""Requests made of the description, good and bad: no 5xx, and no status that it does not name."""

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

from aios_kernel_api.gateway.labels import DEADLINE_HEADER
from aios_kernel_api.rest.description import operations, whole_document
from tests.api_scene import ApiScene, bearer

SCHEMA = schemathesis.openapi.from_dict(whole_document())
OPERATORS = {one.name for one in operations() if one.scope == "operator"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
PATIENCE_S = 0.5
DEADLINE_S = 4


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
def test_what_comes_back_is_described(api: ApiScene, case: Case[Any]) -> None:
    name = f"{case.method} {case.operation.path}"
    token = api.operator if name in OPERATORS else api.agent
    wait_s = (case.query or {}).get("wait_s")
    if isinstance(wait_s, int | float) and wait_s > PATIENCE_S:
        case.query["wait_s"] = PATIENCE_S  # what is generated may run for minutes
    headers = {**bearer(token), DEADLINE_HEADER: str(DEADLINE_S)}  # answers without a limit, too
    response = case.call(base_url=api.url, headers=headers)
    case.validate_response(response, checks=CHECKS)
