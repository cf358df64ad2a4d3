"""docker-compose.yml starts what exists, and tells it only settings that somebody reads."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)


def test_the_fleet_has_the_processes_that_exist() -> None:
    assert set(SERVICES) == {
        "redis",
        "postgres",
        "migrate",
        "scheduler",
        "llm-worker",
        "tool-worker",
        "state-worker",
    }
    assert OURS == ["llm-worker", "migrate", "scheduler", "state-worker", "tool-worker"]


@pytest.mark.parametrize("name", OURS)
def test_its_command_is_a_module_that_runs(name: str) -> None:
    python, dash_m, module, *_ = SERVICES[name]["command"]

    assert (python, dash_m) == ("python", "-m")
    assert importlib.util.find_spec(f"{module}.__main__") is not None


@pytest.mark.parametrize("name", OURS)
def test_its_image_is_built_from_files_that_exist(name: str) -> None:
    dockerfile = ROOT / SERVICES[name]["build"]["dockerfile"]

    copied = [
        source
        for line in dockerfile.read_text(encoding="utf-8").splitlines()
        if line.startswith("COPY ") and "--from=" not in line
        for source in line.split()[1:-1]
    ]
    assert "." in copied
    assert [source for source in copied if not (ROOT / source).exists()] == []


@pytest.mark.parametrize("name", OURS)
def test_its_settings_are_ones_that_our_code_reads(name: str) -> None:
    packages = [*ROOT.glob("broker/**/*.py"), *ROOT.glob("workers/**/*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in packages)

    for setting in SERVICES[name]["environment"]:
        assert re.search(rf"\b{setting}\b", code), f"nothing reads {setting}"


@pytest.mark.parametrize("name", OURS)
def test_it_waits_for_services_that_say_when_they_are_ready(name: str) -> None:
    for needed, how in SERVICES[name]["depends_on"].items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[needed]
        else:
            assert (needed, how["condition"]) == ("migrate", "service_completed_successfully")


def test_the_database_login_is_no_superuser() -> None:
    database = SERVICES["postgres"]
    assert "POSTGRES_USER" not in database["environment"]  # it would be the superuser
    login = SERVICES["state-worker"]["environment"]["AIOS_DATABASE_URL"].partition("//")[2]
    made = (ROOT / "deploy/postgres/login.sh").read_text(encoding="utf-8")
    assert f"CREATE ROLE {login.partition(':')[0]} LOGIN CREATEROLE PASSWORD" in made
    assert "SUPERUSER" not in made
    assert any("./deploy/postgres/login.sh:" in volume for volume in database["volumes"])


def test_the_audit_logs_key_is_in_a_volume_that_the_database_has_not() -> None:
    worker = SERVICES["state-worker"]
    assert f"audit:{worker['environment']['AIOS_AUDIT_DIR']}" in worker["volumes"]
    assert [name for name, one in SERVICES.items() if "audit:" in str(one.get("volumes"))] == [
        "state-worker"
    ]


def test_the_servers_keep_their_data_and_are_not_open_to_the_network() -> None:
    for name in ("redis", "postgres"):
        volume = SERVICES[name]["volumes"][0].partition(":")[0]
        assert volume in COMPOSE["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])
    assert "--appendonly" in SERVICES["redis"]["command"]
