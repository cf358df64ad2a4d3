"""`aios ui`: a link that logs in once, as an operator who stands in the audit log."""

import json
import os
import subprocess
import sys
from urllib.parse import urlsplit

import httpx

from tests.api_scene import TIMEOUT_S, ApiScene

LIMIT_S = 60


def ui(api: ApiScene, *arguments: str) -> dict[str, object]:
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIOS_")},
        "AIOS_STATE_DIR": str(api.kernel.config.state_dir),
    }
    done = subprocess.run(
        [sys.executable, "-m", "aios_cli", "ui", "--no-open", "--json", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr or done.stdout
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_link_logs_in_once_as_an_operator(api: ApiScene) -> None:
    made = ui(api, "--name", "petra")
    link = urlsplit(str(made["url"]))

    assert f"{link.scheme}://{link.netloc}" == api.url
    assert made["opened"] is False
    with httpx.Client(base_url=api.url, timeout=TIMEOUT_S) as client:
        assert client.get(f"{link.path}?{link.query}").status_code == 303
        shown = client.get("/fleet")
        assert shown.status_code == 200
        assert "operator:petra" in shown.text
        assert httpx.get(str(made["url"]), timeout=TIMEOUT_S).status_code == 401
    with api.client(api.operator) as client:
        answer = client.get("/v1/audit")
        assert answer.status_code == 200, answer.text
        lines = answer.json()["items"]
        assert any(one["object"] == "agent operator:petra" for one in lines)
