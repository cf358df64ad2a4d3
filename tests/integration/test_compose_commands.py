"""docker-compose.yml without an engine: its commands, secrets and health checks on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from aios_broker.config import KernelConfig
from aios_broker.queues.keys import Keys
from aios_broker.queues.users import user_name
from aios_cli.deployment import write_secrets
from aios_local.embedded.redis import find_valkey, free_port
from aios_sdk import Agent
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(180)
ROOT = Path(__file__).resolve().parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(
    (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
)["services"]
PROCESSES = ("scheduler", "llm-worker", "tool-worker", "state-worker", "api")
API_PORT = "8471"  # in its container
START_S = 60.0
TOOLS = "/etc/aios/tools"  # in a tool worker's container
MODULE = """
from aios_sdk import tool

@tool
def add(a: int, b: int) -> int:
    return a + b

@tool(destructive=True)
def wipe() -> None:
    pass
"""


class Fleet:
    """The services of the file as processes; a folder of this machine stands for /run/secrets."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.redis_port, self.api_port = free_port(), free_port()
        self.secrets = folder / "secrets"
        self._folder = folder
        config = KernelConfig(state_dir=folder)
        write_secrets(
            self.secrets, config, redis=f"127.0.0.1:{self.redis_port}", postgres="unused:1"
        )
        (self.secrets / "database_url").write_text(database_url)
        self._tools = folder / "tools"  # in place of deploy/tools
        self._tools.mkdir()
        (self._tools / "module_of_test.py").write_text(MODULE)
        entry = '[tools."acme/{0}"]\nfunction = "module_of_test:{0}"\npath = "{1}"\n'
        (self._tools / "tools.toml").write_text(
            "".join(entry.format(name, self._tools) for name in ("add", "wipe"))
        )

    def read(self, name: str) -> str:
        return (self.secrets / name).read_text().strip()

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        command = [str(part) for part in SERVICES[name]["command"]]
        if name == "redis":
            command = [str(find_valkey()), *command[1:], "--port", str(self.redis_port)]
            command += ["--bind", "127.0.0.1"]
        with (self._folder / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                [self._here(part, name) for part in command],
                env=self._environment(name),
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        try:
            yield
        finally:
            child.terminate()
            assert child.wait(30) == 0, self.log(name)

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def is_healthy(self, name: str) -> bool:
        """Run the service's own check of its health, in its environment."""
        kind, *check = SERVICES[name]["healthcheck"]["test"]
        assert kind == "CMD"
        done = subprocess.run(
            [self._here(part, name) for part in check],
            env=self._environment(name),
            capture_output=True,
            check=False,
            timeout=30,
        )
        return done.returncode == 0

    def _environment(self, name: str) -> dict[str, str]:
        given: Mapping[str, str] = SERVICES[name].get("environment", {})
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HOME": str(self._folder),
            "AIOS_LLM_CORE": "simulated",  # the model is not what is tried here
            **{key: self._here(value, name) for key, value in given.items()},
        }

    def _here(self, text: str, name: str) -> str:
        """Return what a word of the file means on this machine."""
        for one in SERVICES[name].get("secrets", ()):
            target, source = (one, one) if isinstance(one, str) else (one["target"], one["source"])
            file = "redis_users.acl" if source == "redis_users" else source
            text = text.replace(f"/run/secrets/{target}", str(self.secrets / file))
        if text == "python":
            return sys.executable
        audit = str(self._folder / "audit")
        return (
            text.replace(API_PORT, str(self.api_port))
            .replace("/var/lib/aios/audit", audit)
            .replace(TOOLS, str(self._tools))
            .replace("0.0.0.0", "127.0.0.1")
        )


def test_the_fleet_works_as_it_is_written_down(tmp_path: Path, database_url: str) -> None:
    fleet = Fleet(tmp_path, database_url)
    with ExitStack() as stack:
        stack.enter_context(fleet.running("redis"))
        operator = fleet.read("redis_url_operator")
        boss = stack.enter_context(redis.Redis.from_url(operator))
        wait_until(lambda: answers(fleet.read("redis_url_inspector")), START_S)
        for name in PROCESSES:
            stack.enter_context(fleet.running(name))
        for name in PROCESSES:
            try:
                wait_until(partial(fleet.is_healthy, name), START_S)
            except TimeoutError as error:
                raise AssertionError(fleet.log(name)) from error

        with Agent("ada", url=fleet.read("redis_url_client")) as ada:
            assert ada.llm.chat("Hello", max_tokens=3).text
            assert ada.access.whoami().agent == "ada"
            assert ada.tool.call("acme/add", {"a": 40, "b": 2}).value == 42
            wiping = ada.tool.call.start("acme/wipe")  # with the key there is somebody to ask
            wait_until(lambda: wiping.status().state == "parked", START_S)
        users = {client["user"] for client in boss.client_list()}
        processes = {user_name(role, Keys()) for role in ("scheduler", "worker", "api")}
        assert users == {"default", *processes}
        # Who is there before the scheduler asks again and again whether it has made the secret.
        refused = [one for one in boss.acl_log() if one["object"] != Keys().own("secret")]
        assert refused == []


def answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False
