"""docker-compose.yml starts what exists, and tells it only settings that somebody reads."""

import importlib.util
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from aios_broker.config import FILE_SUFFIX, SECRET_VARIABLES, KernelConfig, variables_of
from aios_broker.contract.errors import InvalidConfig
from aios_broker.scheduler.config import SchedulerConfig
from aios_broker.tool_catalogue import read_tools
from aios_cli.deployment import write_secrets
from aios_kernel_api.config import ApiConfig
from aios_workers.config import WorkerConfig

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CONFIG = KernelConfig(state_dir=ROOT)
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)


def test_the_fleet_has_the_processes_that_exist() -> None:
    assert set(SERVICES) == {
        "api",
        "redis",
        "postgres",
        "migrate",
        "scheduler",
        "llm-worker",
        "tool-worker",
        "state-worker",
    }
    assert OURS == ["api", "llm-worker", "migrate", "scheduler", "state-worker", "tool-worker"]


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
    known = {
        variable + suffix
        for config in (KernelConfig, SchedulerConfig, WorkerConfig, ApiConfig)
        for variable in variables_of(config)
        for suffix in ("", FILE_SUFFIX if variable in SECRET_VARIABLES else "")
    }
    assert [setting for setting in SERVICES[name]["environment"] if setting not in known] == []


@pytest.mark.parametrize("name", OURS)
def test_it_waits_for_services_that_say_when_they_are_ready(name: str) -> None:
    for needed, how in SERVICES[name]["depends_on"].items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[needed]
        elif needed == "migrate":
            assert how["condition"] == "service_completed_successfully"
        else:
            assert (name, needed) == ("tool-worker", "state-worker")
            assert how["condition"] == "service_started"


def test_the_database_login_is_no_superuser(tmp_path: Path) -> None:
    database = SERVICES["postgres"]
    assert "POSTGRES_USER" not in database["environment"]  # it would be the superuser
    write_secrets(tmp_path, CONFIG, redis="redis:6379", postgres="postgres:5432")
    login = (tmp_path / "database_url").read_text().partition("//")[2]
    made = (ROOT / "deploy/postgres/login.sh").read_text(encoding="utf-8")
    assert f"CREATE ROLE {login.partition(':')[0]} LOGIN CREATEROLE PASSWORD" in made
    assert "SUPERUSER" not in made
    assert any("./deploy/postgres/login.sh:" in volume for volume in database["volumes"])


def secrets_of(name: str) -> dict[str, str]:
    """Return the secrets of a service: what each is called in its container, and its file."""
    given = [
        (one, one) if isinstance(one, str) else (one["target"], one["source"])
        for one in SERVICES[name].get("secrets", ())
    ]
    return {target: COMPOSE["secrets"][source]["file"] for target, source in given}


@pytest.mark.parametrize("name", SERVICES)
def test_its_secrets_are_files_that_are_written_for_it(name: str, tmp_path: Path) -> None:
    written = write_secrets(tmp_path, CONFIG, redis="redis:6379", postgres="postgres:5432")
    secrets = secrets_of(name)

    assert [file for file in secrets.values() if Path(file).name not in written] == []
    service = SERVICES[name]
    text = f"{service.get('environment')} {service.get('command')} {service.get('healthcheck')}"
    assert set(re.findall(r"/run/secrets/(\w+)", text)) == set(secrets)


def test_each_process_enters_redis_as_its_own_user() -> None:
    logins = {name: secrets_of(name).get("redis_url", "").rpartition("/")[2] for name in SERVICES}
    assert logins == {
        "api": "redis_url_api",
        "llm-worker": "redis_url_worker",
        "migrate": "",
        "postgres": "",
        "redis": "redis_url_inspector",
        "scheduler": "redis_url_scheduler",
        "state-worker": "redis_url_worker",
        "tool-worker": "redis_url_worker",
    }


def test_no_secret_stands_in_the_file_or_goes_into_an_image_or_the_repository() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert "PASSWORD:" not in text
    folders = {Path(one["file"]).parent.as_posix() for one in COMPOSE["secrets"].values()}
    assert folders == {"deploy/secrets"}
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "deploy/secrets" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def test_secrets_stay_when_they_are_written_again(tmp_path: Path) -> None:
    def write() -> dict[str, str]:
        write_secrets(tmp_path, CONFIG, redis="redis:6379", postgres="postgres:5432")
        return {path.name: path.read_text() for path in tmp_path.iterdir()}

    first = write()
    assert write() == first
    (tmp_path / "redis_password").unlink()
    second = write()
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {name for name in first if name.startswith("redis_")}
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    (tmp_path / "postgres_password").write_text("with a/slash")
    with pytest.raises(InvalidConfig, match="does not fit into an address"):
        write()


def test_the_border_has_limits() -> None:
    api = SERVICES["api"]
    assert api["read_only"] is True
    assert api["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory", "pids"}
    assert all("no-new-privileges:true" in SERVICES[name]["security_opt"] for name in OURS)
    assert all(SERVICES[name]["cap_drop"] == ["ALL"] for name in OURS)


def test_the_audit_logs_key_is_in_a_volume_that_the_database_has_not() -> None:
    worker, tool_worker = SERVICES["state-worker"], SERVICES["tool-worker"]
    assert f"audit:{worker['environment']['AIOS_AUDIT_DIR']}" in worker["volumes"]
    # It is made by the one, and only read by the other.
    assert f"audit:{tool_worker['environment']['AIOS_AUDIT_DIR']}:ro" in tool_worker["volumes"]
    assert "state-worker" in tool_worker["depends_on"]
    assert [name for name, one in SERVICES.items() if "audit:" in str(one.get("volumes"))] == [
        "tool-worker",
        "state-worker",
    ]


def test_tool_workers_have_the_file_of_tools_and_only_read_it() -> None:
    worker = SERVICES["tool-worker"]
    [(here, there, how)] = [
        tuple(volume.split(":")) for volume in worker["volumes"] if volume.startswith("./")
    ]
    tools = Path(worker["environment"]["AIOS_TOOLS"])
    assert (tools.parent.as_posix(), how) == (there, "ro")
    file = ROOT / here / tools.name
    found = read_tools(file)
    assert (dict(found.tools), dict(found.problems)) == ({}, {})
    # What it shows is right, too.
    shown = re.findall(r"^#   (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    entries = tomllib.loads("\n".join(shown))["tools"]
    assert set(entries) == {"acme/report", "acme/add"}
    places = [entry.get("folder", entry.get("path")) for entry in entries.values()]
    assert all(Path(place).is_relative_to(there) for place in places)


def test_the_servers_keep_their_data_and_are_not_open_to_the_network() -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["api"]["ports"])
    for name in ("redis", "postgres"):
        volume = SERVICES[name]["volumes"][0].partition(":")[0]
        assert volume in COMPOSE["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])
    assert "--appendonly" in SERVICES["redis"]["command"]
