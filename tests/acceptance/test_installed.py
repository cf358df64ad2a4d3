"""Installed with pip, as README says: the whole kernel from a checkout, and the SDK alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_wheel import users_python, wheel

ROOT = Path(__file__).resolve().parents[2]
INSTALL_LIMIT_S = 900
LIMIT_S = 180

__all__ = ["users_python", "wheel"]  # fixtures


def run(
    command: list[str], home: Path, limit_s: float = LIMIT_S
) -> subprocess.CompletedProcess[str]:
    kept = ("PATH", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "SSL_CERT_FILE", "HTTPS_PROXY")
    environ = {name: os.environ[name] for name in kept if name in os.environ}
    return subprocess.run(
        command,
        cwd=home,
        env={**environ, "HOME": str(home), "AIOS_LLM_CORE": "simulated"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="aios-home-") as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_LIMIT_S + 300)
def test_pip_installs_a_kernel_from_the_checkout(home: Path) -> None:
    run([sys.executable, "-P", "-m", "venv", str(home / "venv")], home)
    programs = home / "venv" / "bin"
    pip = [str(programs / "python"), "-m", "pip", "install", "--quiet", f"{ROOT}[kernel]"]
    installed = run(pip, home, INSTALL_LIMIT_S)
    assert installed.returncode == 0, installed.stderr

    aios = str(programs / "aios")
    assert run([aios, "--version"], home).stdout.startswith("aios 0.1.0 (Python 3.")
    early = run([aios, "up", "--detach"], home)
    assert (early.returncode, "run `aios setup`" in early.stderr) == (2, True)
    setup = run([aios, "setup"], home, INSTALL_LIMIT_S)
    assert setup.returncode == 0, setup.stderr
    up = run([aios, "up", "--detach"], home)
    assert up.returncode == 0, up.stderr
    try:
        answered = run([aios, "submit", "--tool", "echo", "hello"], home)
        assert answered.stdout == "hello\n", answered.stderr
        migrations = run([aios, "migrate"], home)  # they came along
        assert "is at revision" in migrations.stdout
    finally:
        assert run([aios, "down"], home).stdout == "stopped\n"


@pytest.mark.parametrize("arguments", [["--version"], ["ps"], ["up"]])
def test_the_sdk_alone_says_what_its_command_line_needs(
    users_python: Path, home: Path, arguments: list[str]
) -> None:
    done = run([str(users_python), "-P", "-m", "aios_cli", *arguments], home)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "the SDK alone is installed" in done.stderr
    assert "[kernel]'" in done.stderr
    assert "Traceback" not in done.stderr
