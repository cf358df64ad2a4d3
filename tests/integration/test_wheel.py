"""The wheel is the whole kernel: code, types, Lua and migrations; and nothing of the tests."""

import email
import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 50.0
ROOMS = sorted(path.parent for path in ROOT.glob("*/aios_*/__init__.py"))
PACKAGES = {room.name for room in ROOMS}

USER = """
from aios_sdk import Agent, AsyncAgent

async def asynchronous() -> None:
    async with AsyncAgent("writer") as me:
        text: str = (await me.llm.chat("hello", max_tokens=3)).text
        number: int = (await me.llm.chat("hello")).text  # wrong
        print(text, number)
        me.llm.chat("hello", max_tokens="many")  # wrong
        await me.memory.search("tea", mode="hybird")  # wrong
        async with me.llm.chat.stream("hello") as stream:
            async for piece in stream:
                piece.upper()

with Agent("writer") as us:
    print(us.llm.chat("hello").txt)  # wrong
    print(us.llm.chant("hello"))  # wrong
    us.memory.search("tea", mode="hybrid")
    us.memory.search("tea", mode="hybird")  # wrong
    us.storage.search("tea", mode="hybird")  # wrong
    us.llm.chat.start("hello").results()  # wrong
    print(us.llm.chat("hello").text)
"""
WRONG = [at for at, row in enumerate(USER.splitlines(), 1) if row.endswith("# wrong")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel that is built now, from this checkout."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-P", "-m", "hatchling", "build", "--target", "wheel", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=LIMIT_S,
    )
    [wheel] = out.glob("aios_broker-*.whl")
    return wheel


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """Return the paths inside the wheel."""
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def users_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment that has the wheel and msgspec, and nothing else.

    Neither needs more than being unpacked, so no installer and no index is asked.
    """
    environment = tmp_path_factory.mktemp("user")
    make = [sys.executable, "-P", "-m", "venv", "--without-pip", str(environment)]
    subprocess.run(make, check=True, capture_output=True, timeout=LIMIT_S)
    [packages] = environment.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    for file in importlib.metadata.files("msgspec") or ():
        if ".." not in file.parts:
            (packages / file).parent.mkdir(parents=True, exist_ok=True)
            (packages / file).write_bytes(file.read_binary())
    return environment / "bin" / "python"


@pytest.mark.parametrize(
    ("source", "pattern", "inside"),
    [
        ("migrations", "**/*.py", "aios_broker/migrations"),
        ("migrations", "schema/*.sql", "aios_broker/migrations"),
        ("broker", "aios_*/**/*.lua", ""),
        ("workers", "aios_*/**/*.lua", ""),
        *((room.parent.name, f"{room.name}/**/*.py", "") for room in ROOMS),
    ],
)
def test_it_has_every_file_of(names: set[str], source: str, pattern: str, inside: str) -> None:
    files = [path.relative_to(ROOT / source) for path in (ROOT / source).glob(pattern)]

    assert files
    assert [path for path in files if (Path(inside) / path).as_posix() not in names] == []


def test_it_has_nothing_else(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}

    assert tops == PACKAGES
    assert [name for name in names if "/test_" in name] == []
    assert [name for name in names if "__pycache__" in name] == []


def test_every_package_says_that_it_is_typed(names: set[str]) -> None:
    assert {name for name in names if name.endswith("py.typed")} == {
        f"{package}/py.typed" for package in PACKAGES
    }


def test_sglang_is_an_extra_of_its_own(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as unpacked:
        [path] = [name for name in unpacked.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(unpacked.read(path))

    def needed(extra: str) -> set[str]:
        wanted = [one.partition("; ") for one in metadata.get_all("Requires-Dist", [])]
        return {name for name, _, where in wanted if f"extra == '{extra}'" in where}

    assert {"kernel", "sglang-server"} <= set(metadata.get_all("Provides-Extra", []))
    assert needed("sglang-server") - needed("kernel") == {"sglang<0.6,>=0.5.17"}
    assert needed("kernel") <= needed("sglang-server")


def check(users_python: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a type checker over the user's program, far from the checkout and its settings."""
    (folder / "program.py").write_text(USER)
    return subprocess.run(
        [sys.executable, "-P", "-m", *command, "program.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
        env={
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(folder),
            "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",  # does not ask for a newer one
        },
    )


def test_mypy_finds_the_mistakes_of_a_users_program(users_python: Path, tmp_path: Path) -> None:
    options = ["--strict", "--no-incremental", "--config-file=", "--python-executable"]

    done = check(users_python, tmp_path, "mypy", *options, str(users_python))

    found = [row for row in done.stdout.splitlines() if ": error:" in row]
    assert [int(row.split(":")[1]) for row in found] == WRONG, done.stdout + done.stderr


def test_pyright_finds_the_mistakes_of_a_users_program(users_python: Path, tmp_path: Path) -> None:
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')

    done = check(
        users_python, tmp_path, "pyright", "--outputjson", "--pythonpath", str(users_python)
    )

    found = json.loads(done.stdout)["generalDiagnostics"]
    at = sorted({entry["range"]["start"]["line"] + 1 for entry in found})
    assert at == WRONG, done.stdout + done.stderr
