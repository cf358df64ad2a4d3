"""`aios up --detach`, `status`, `doctor`, `down`, as a person or a script runs them."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from aios_cli.main import COMMANDS, cli
from tests.stand_ins import is_alive, with_descendants
from tests.waiting import wait_until

Output = subprocess.CompletedProcess[str]
COMMAND_TIMEOUT_S = 50


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a person who has set nothing; PYTHONPATH stands for the installation."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIOS_")}
    kept.pop("XDG_STATE_HOME", None)
    return {**kept, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}


def aios(environment: dict[str, str], *arguments: str, **settings: str) -> Output:
    return subprocess.run(
        [sys.executable, "-m", "aios_cli", *arguments],
        env={**environment, **settings},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


# Servers elsewhere and no workers: what is left of a kernel is its scheduler.
def bare(redis_url: str, database_url: str) -> dict[str, str]:
    return {
        "AIOS_REDIS_URL": redis_url,
        "AIOS_DATABASE_URL": database_url,
        "AIOS_LLM_WORKERS": "0",
        "AIOS_TOOL_WORKERS": "0",
        "AIOS_STATE_WORKERS": "0",
    }


def test_help_lists_the_commands_of_this_build_and_each_has_help() -> None:
    shown = CliRunner().invoke(cli, ["--help"])
    assert shown.exit_code == 0
    listed = [line.split()[0] for line in shown.output.partition("Commands:\n")[2].splitlines()]
    assert set(listed) <= set(COMMANDS)
    assert {"up", "down", "status", "doctor", "setup"} <= set(listed)
    for name in listed:
        shown = CliRunner().invoke(cli, [name, "--help"])
        assert shown.exit_code == 0, name
        assert "--state-dir" in shown.output, name


def test_help_imports_no_command(environment: dict[str, str]) -> None:
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "aios_cli", "--help"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=True,
    ).stderr
    for heavy in ("aios_cli.up", "redis", "psycopg", "sqlalchemy", "rich"):
        assert not re.search(rf"\| +{heavy}$", told, re.MULTILINE), heavy


def test_a_missing_kernel_is_an_error_with_a_remedy(environment: dict[str, str]) -> None:
    shown = aios(environment, "status")
    assert shown.returncode == 3
    assert "no kernel runs on" in shown.stderr
    assert "aios up" in shown.stderr
    assert "Traceback" not in shown.stderr
    as_json = aios(environment, "status", "--json")
    assert as_json.returncode == 3
    assert json.loads(as_json.stdout)["error"]["code"] == "kernel-not-running"


def test_wrong_usage_exits_with_2_in_words_and_in_json(environment: dict[str, str]) -> None:
    assert aios(environment, "up", "--slots", "0").returncode == 2
    as_json = aios(environment, "status", "--json", "--colour")
    assert as_json.returncode == 2
    assert json.loads(as_json.stdout)["error"]["code"] == "usage"


def test_a_misspelt_setting_is_named_at_start(environment: dict[str, str]) -> None:
    shown = aios(environment, "up", AIOS_POLCY="fifo")
    assert shown.returncode == 2
    assert "AIOS_POLCY" in shown.stderr
    assert "AIOS_POLICY" in shown.stderr
    detached = aios(environment, "up", "--detach", "--policy", "longest")
    assert detached.returncode == 2
    assert detached.stderr.startswith("invalid-config: AIOS_POLICY: there is no policy 'longest'")


def test_down_without_a_kernel_is_no_error(environment: dict[str, str]) -> None:
    shown = aios(environment, "down", "--json")
    assert (shown.returncode, json.loads(shown.stdout)) == (0, {"stopped": False})


def test_doctor_finds_every_part_well_or_says_what_to_do(environment: dict[str, str]) -> None:
    shown = aios(environment, "doctor", "--json")
    found = {one["check"]: one for one in json.loads(shown.stdout)["findings"]}
    for check in ("settings", "python", "packages", "redis server", "postgres server"):
        assert found[check]["ok"], found[check]
    assert (shown.returncode == 0) == all(one["ok"] for one in found.values())
    ill = aios(environment, "doctor", AIOS_LLM_SLOTS="many")
    assert ill.returncode == 1
    assert "AIOS_LLM_SLOTS" in ill.stdout


def test_doctor_says_when_the_kernels_redis_is_gone(
    environment: dict[str, str], tmp_path: Path
) -> None:
    shown = aios(
        environment, "doctor", "--json", AIOS_REDIS_URL=f"unix://{tmp_path}/none.sock?db=0"
    )
    found = {one["check"]: one for one in json.loads(shown.stdout)["findings"]}
    assert shown.returncode == 1
    assert not found["redis"]["ok"]
    assert found["redis"]["remedy"]


def test_a_detached_kernel_is_found_by_status_and_stopped_by_down(
    environment: dict[str, str], tmp_path: Path
) -> None:
    workerless = dict.fromkeys(("AIOS_LLM_WORKERS", "AIOS_TOOL_WORKERS", "AIOS_STATE_WORKERS"), "0")
    state_dir = tmp_path / "a kernel's state"
    place = ("--state-dir", str(state_dir))
    try:
        started = aios(environment, "up", "--detach", "--json", *place, **workerless)
        assert started.returncode == 0, started.stderr
        shown = aios(environment, "status", "--json", *place)
        assert shown.returncode == 0, shown.stderr
        status = json.loads(shown.stdout)
        assert status["redis_url"].startswith("unix://")
        assert status["database_url"].startswith("postgresql+psycopg://")
        assert status["api_url"].startswith("http://127.0.0.1:")
        names = [process["name"] for process in status["processes"]]
        assert names == ["redis", "postgres", "migrate", "scheduler", "api"]
        assert status["scheduler"]

        again = aios(environment, "up", *place)
        assert again.returncode == 2
        assert f"process {status['pid']}" in again.stderr
        pids = [process["pid"] for process in status["processes"] if process["pid"]]
        family = with_descendants(pids)
    finally:
        stopped = aios(environment, "down", *place)
    assert stopped.returncode == 0, stopped.stderr
    assert not any(is_alive(pid) for pid in family)
    assert aios(environment, "status", *place).returncode == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_kernel_in_the_foreground_logs_and_stops_at_a_signal(
    environment: dict[str, str], redis_url: str, database_url: str, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "aios_cli", "up"],
        env={**environment, **bare(redis_url, database_url)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "| ready: " in line:
                break
        process.send_signal(number)
        rest = process.stdout.read()
        assert wait_until(lambda: process.poll() is not None)
    assert process.returncode == 0, rest
    assert "\x1b" not in line + rest
