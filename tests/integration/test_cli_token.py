"""`aios agents register | token | revoke`: who gets a token comes in by the HTTP API."""

import json
import os
import subprocess
import sys
import time

import httpx

from tests.api_scene import ACME, ApiScene, bearer
from tests.integration.test_api_syscalls import echo

TIMEOUT_S = 60


def agents(api: ApiScene, *arguments: str) -> dict[str, object]:
    """Run the command on the kernel of the scene; return what it says."""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIOS_")},
        "AIOS_STATE_DIR": str(api.kernel.config.state_dir),
    }
    done = subprocess.run(
        [sys.executable, "-m", "aios_cli", "agents", *arguments, "--json"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    found: dict[str, object] = json.loads(done.stdout)
    assert done.returncode == (4 if "error" in found else 0), done.stderr or done.stdout
    return found


def status(api: ApiScene, made: dict[str, object], path: str = "/v1/syscalls") -> int:
    headers = bearer(str(made["token"]))
    if path == "/v1/syscalls":
        found = httpx.post(api.url + path, json=echo(), headers=headers).status_code
        return 202 if found == 200 else found  # it may have ended already
    return httpx.get(api.url + path, headers=headers).status_code


def test_an_agents_token_opens_the_api_until_it_is_taken_back(api: ApiScene) -> None:
    made = agents(api, "register", "carla", "--tenant", ACME)
    assert status(api, made) == 202
    more = agents(api, "token", "carla", "--tenant", ACME)
    assert status(api, more) == 202
    assert agents(api, "revoke", "carla", "--tenant", ACME)["revoked"] == 2
    assert status(api, made) == 401


def test_a_token_with_an_end_has_one(api: ApiScene) -> None:
    made = agents(api, "register", "dora", "--tenant", ACME, "--ttl-s", "1")
    until_s = time.monotonic() + 10
    while status(api, made) != 401:
        assert time.monotonic() < until_s


def test_an_operators_token_is_no_agents_and_finds_everybodys_syscalls(api: ApiScene) -> None:
    with api.client(api.foreigner) as client:
        place = client.post("/v1/syscalls", json=echo()).headers["location"]
    made = agents(api, "token", "otto", "--operator")
    assert made["agent"] == "operator:otto"
    assert (status(api, made), status(api, made, place)) == (403, 200)
    plain = agents(
        api, "register", "otto", "--tenant", ACME
    )  # an agent of the same name is another one
    assert (status(api, plain), status(api, plain, place)) == (202, 404)
    agents(api, "revoke", "otto", "--operator")
    assert (status(api, made, place), status(api, plain)) == (401, 202)


def test_a_name_that_nobody_registered_may_be_a_slip(api: ApiScene) -> None:
    agents(api, "register", "fritz", "--tenant", ACME)
    again = agents(api, "register", "fritz", "--tenant", ACME)
    for command, said in (("token", {}), ("revoke", {}), ("register", again)):
        error = said.get("error") or agents(api, command, "frits", "--tenant", ACME)["error"]
        assert isinstance(error, dict)
        assert error["field"] == "agent"
        assert error["code"] == ("already-exists" if command == "register" else "unknown-agent")
        assert "`aios agents" in error["remedy"]
