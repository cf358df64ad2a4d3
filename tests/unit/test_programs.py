"""Which processes a kernel consists of, and what they are called."""

from pathlib import Path

import pytest

from aios_broker.config import KernelConfig
from aios_broker.contract.errors import InvalidConfig
from aios_broker.queues.keys import Keys
from aios_local.supervisor import programs
from aios_local.supervisor.programs import kernel_programs, services_of


def names(**settings: int) -> list[str]:
    config = KernelConfig(state_dir=Path("/nowhere"), **settings)  # type: ignore[arg-type]
    return [name for program in kernel_programs(config) for name in program.process_names]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["migrate", "scheduler", "llm-1", "tool-1", "state-1", "api"]),
        (
            {"schedulers": 2},
            ["migrate", "scheduler-1", "scheduler-2", "llm-1", "tool-1", "state-1", "api"],
        ),
        (
            {"llm_workers": 2, "tool_workers": 0, "state_workers": 0},
            ["migrate", "scheduler", "llm-1", "llm-2", "api"],
        ),
        (
            {"llm_workers": 0, "state_workers": 2},
            ["migrate", "scheduler", "tool-1", "state-1", "state-2", "api"],
        ),
    ],
)
def test_processes_are_numbered_where_there_may_be_several(
    settings: dict[str, int], expected: list[str]
) -> None:
    assert names(**settings) == expected


OTLP = {"OTEL_EXPORTER_OTLP_HEADERS": "key=secret"}


def test_traces_are_told_by_a_process_that_alone_gets_what_opentelemetry_reads() -> None:
    config = KernelConfig(state_dir=Path("/nowhere"), otel_endpoint="http://localhost:4318")
    environment = {**OTLP, "AIOS_REDIS_URL": "unix:///nowhere", "PATH": "/bin"}
    services = [
        service
        for stage in services_of(kernel_programs(config), environment, Keys())
        for service in stage
    ]
    has_it = {service.name for service in services if OTLP.keys() <= service.environment.keys()}
    assert has_it == {"traces"}
    has_redis = {service.name for service in services if "AIOS_REDIS_URL" in service.environment}
    assert has_redis == set(names())
    assert {service.name for service in services} == {*names(), "traces"}


def test_traces_without_what_they_need_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "OTLP_PACKAGE", "opentelemetry.not_here.at_all")
    config = KernelConfig(state_dir=Path("/nowhere"), otel_endpoint="http://localhost:4318")
    with pytest.raises(InvalidConfig) as caught:
        kernel_programs(config)
    assert caught.value.field == "AIOS_OTEL_ENDPOINT"
    assert "aios-broker[otel]" in str(caught.value)
