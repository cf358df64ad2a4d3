"""What tools depend on: an environment for each set of packages, made once and kept.

A tool that declares nothing runs on the worker's own Python. One that does gets an environment with
exactly that; its name is a digest of what was asked for and of the Python, and what came of it is
part of the tool's version.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aios_broker.contract.errors import ToolUnavailable

MADE = "aios.json"  # in a whole environment: what it has
LIMIT_S = 600.0  # to make one
LOCK_POLL_S = 0.1
MOST_TOLD = 2_000  # characters of what the installer says
# What the installer may be told of: where packages come from, and how to get there.
TOLD = ("PIP_", "UV_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_")
_LIST = """
import importlib.metadata as m, json
print(json.dumps(sorted(f"{d.metadata['Name']}=={d.version}" for d in m.distributions())))
"""


@dataclass(frozen=True, slots=True)
class ToolEnvironment:
    """Where a tool runs: its Python, and what is installed there."""

    python: Path
    installed: tuple[str, ...] = ()  # such as `sympy==1.14.0`; none: the worker's own


class ToolEnvironments:
    """The environments of one machine."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        """Take where they lie, and the environment of which the installer is told a part."""
        self._folder = folder
        self._environ = {
            "PATH": environ.get("PATH", os.defpath),
            "PIP_NO_INPUT": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **{name: value for name, value in environ.items() if name.upper().startswith(TOLD)},
        }

    async def of(self, dependencies: Sequence[str]) -> ToolEnvironment:
        """Return the environment of a tool with these dependencies; make it where there is none.

        Raises:
            ToolUnavailable: They cannot be installed.
        """
        if not dependencies:
            return ToolEnvironment(Path(sys.executable))
        wanted = sorted(set(dependencies))
        for each in wanted:
            if each.startswith("-") or not each.isprintable() or not each.isascii():
                raise ToolUnavailable(
                    f"{each!r} is no dependency",
                    field="dependencies",
                    remedy="name packages, such as `sympy>=1.13`",
                )
        told = json.dumps([sys.version, sys.executable, wanted])
        folder = self._folder / hashlib.sha256(told.encode()).hexdigest()[:16]
        if (found := _made(folder)) is not None:
            return found
        return await self._make(folder, wanted)

    async def _make(self, folder: Path, wanted: Sequence[str]) -> ToolEnvironment:
        await asyncio.to_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        with _lock_file(folder) as lock:
            try:
                async with asyncio.timeout(LIMIT_S):
                    while not _try_lock(lock):  # noqa: ASYNC110  another process holds it
                        await asyncio.sleep(LOCK_POLL_S)
                    if (found := _made(folder)) is not None:  # by another worker meanwhile
                        return found
                    return await self._install(folder, wanted)
            except TimeoutError as error:
                raise ToolUnavailable(
                    f"its dependencies were not installed within {LIMIT_S:g} s",
                    field="dependencies",
                    remedy="see that the package index answers",
                ) from error

    async def _install(self, folder: Path, wanted: Sequence[str]) -> ToolEnvironment:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)  # one that was cut off
        python = folder / "bin" / "python"
        began_s = time.time()
        await self._run((sys.executable, "-m", "venv", str(folder)))
        await self._run((str(python), "-m", "pip", "install", "--quiet", "--", *wanted))
        listed = await self._run((str(python), "-I", "-c", _LIST))
        installed = tuple(json.loads(listed))
        made = {"wanted": list(wanted), "installed": list(installed), "made_at": began_s}
        (folder / MADE).write_text(json.dumps(made), encoding="utf-8")
        return ToolEnvironment(python, installed)

    async def _run(self, command: Sequence[str]) -> bytes:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environ,
            start_new_session=True,
        )
        try:
            printed, said = await process.communicate()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode != 0:
            words = (said or printed).decode(errors="replace").strip()
            raise ToolUnavailable(
                f"its dependencies cannot be installed: {words[-MOST_TOLD:]}",
                field="dependencies",
                remedy="correct them, or see that the package index answers",
            )
        return printed


def _made(folder: Path) -> ToolEnvironment | None:
    """Return an environment that is whole; None: there is none."""
    try:
        said = json.loads((folder / MADE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    python = folder / "bin" / "python"
    return ToolEnvironment(python, tuple(said["installed"])) if python.exists() else None


@contextmanager
def _lock_file(folder: Path) -> Iterator[int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    lock = os.open(folder.with_name(f"{folder.name}.lock"), flags, 0o600)
    try:
        yield lock
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
