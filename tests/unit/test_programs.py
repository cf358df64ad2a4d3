"""Which processes a kernel consists of, and what they are called."""

from pathlib import Path

import pytest

from aios_broker.config import KernelConfig
from aios_local.supervisor.programs import kernel_programs


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
