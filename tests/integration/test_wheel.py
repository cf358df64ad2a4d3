"""The wheel is the whole kernel: code, Lua and migrations; and nothing of the tests."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 50.0


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the paths inside a wheel that is built now, from this checkout."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-P", "-m", "hatchling", "build", "--target", "wheel", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=LIMIT_S,
    )
    [wheel] = out.glob("aios_broker-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize(
    ("source", "pattern", "inside"),
    [
        ("broker/aios_broker/queues", "lua/**/*.lua", "aios_broker/queues"),
        ("migrations", "**/*.py", "aios_broker/migrations"),
        ("migrations", "schema/*.sql", "aios_broker/migrations"),
        ("broker", "aios_broker/**/*.py", ""),
        ("sdk", "aios_sdk/**/*.py", ""),
        ("workers", "aios_workers/**/*.py", ""),
    ],
)
def test_it_has_every_file_of(names: set[str], source: str, pattern: str, inside: str) -> None:
    files = [path.relative_to(ROOT / source) for path in (ROOT / source).glob(pattern)]

    assert files
    assert [path for path in files if (Path(inside) / path).as_posix() not in names] == []


def test_it_has_nothing_else(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}

    assert tops == {"aios_adapters", "aios_broker", "aios_kernel_api", "aios_sdk", "aios_workers"}
    assert [name for name in names if "/test_" in name] == []
    assert [name for name in names if "__pycache__" in name] == []
