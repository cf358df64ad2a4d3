"""RQ's own tests of what reads (registries, results, jobs, `rq info`), in a busy kernel's Redis.

They come with the source of the version that is locked, taken from the package index when this
runs, and nothing of them is kept. What they leave alone is seen afterwards: the kernel's syscalls
are as they were.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import pytest

from aios_broker.contract.syscall import MODULES
from tests.busy_kernel import LLM, Busy, busy_kernel

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 500
FILES = (
    "test_registry.py",
    "test_results.py",
    "test_executions.py",
    "test_job.py",
    "test_queue.py",
    "test_worker_registration.py",
    "test_cli.py::TestRQCli::test_info",
    "test_cli.py::TestRQCli::test_info_only_queues",
    "test_cli.py::TestRQCli::test_info_only_workers",
)
QUEUES_TOO = "counts all queues of the Redis: it has the kernel's, too"
WORKERS_TOO = "counts all workers of the Redis: it has the kernel's, too"
# These do not apply; tests/integration/test_stock_rq_tools.py says what is right of each.
DIFFER = {
    "TestQueue.test_all_custom_job": QUEUES_TOO,
    "TestQueue.test_all_queues": QUEUES_TOO,
    "TestQueue.test_all_queues_with_only_deferred_jobs": QUEUES_TOO,
    "TestQueue.test_enqueue_many_internal_pipeline": QUEUES_TOO,
    "TestQueue.test_queue_delete": QUEUES_TOO,
    "TestQueue.test_queue_delete_but_keep_jobs": QUEUES_TOO,
    "TestRQCli.test_info": QUEUES_TOO,
    "TestRQCli.test_info_only_queues": QUEUES_TOO,
    "TestRQCli.test_info_only_workers": WORKERS_TOO,
    "TestWorkerRegistry.test_get_keys_by_queue": WORKERS_TOO,
    "TestWorkerRegistry.test_worker_registration": WORKERS_TOO,
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * LIMIT_S)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of RQ as it is locked, by its hash."""
    folder = tmp_path_factory.mktemp("rq")
    name = f"rq-{version('rq')}"
    make = [sys.executable, "-P", "-m", "venv", str(folder / "venv")]
    subprocess.run(make, check=True, capture_output=True, timeout=LIMIT_S)
    pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "download", "--quiet", "--no-deps"]
    asked = subprocess.run(
        [*pip, "--no-binary", "rq", "--dest", str(folder), f"rq=={version('rq')}"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    archive = folder / f"{name}.tar.gz"
    if not archive.exists():
        pytest.skip(f"RQ's own tests did NOT run: its source is not to be had: {asked.stderr}")
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    found = re.search(
        rf"^rq=={re.escape(version('rq'))}((?: \\\n +--hash=\S+)+)", lock, re.MULTILINE
    )
    assert found is not None
    assert hashlib.sha256(archive.read_bytes()).hexdigest() in found[1], "another one is locked"
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    shutil.rmtree(folder / name / "rq")  # the installed one is tried
    return folder / name


def outcomes(report: Path) -> dict[str, str]:
    """Return what became of each test: passed, skipped, or the first line of what failed."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failed = next((each for each in case if each.tag in ("failure", "error")), None)
        skipped = case.find("skipped") is not None
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        said = "passed" if failed is None else (failed.get("message") or failed.tag)[:200]
        found[name] = "skipped" if skipped else said
    return found


async def test_rqs_own_reading_tests_pass_in_the_redis_of_a_busy_kernel(
    redis_url: str, source: Path
) -> None:
    async with busy_kernel(redis_url) as busy:
        before = await states(busy)
        report = source / "report.xml"
        await asyncio.to_thread(run_rqs_tests, source, report, busy)
        found = outcomes(report)
        failed = {name: said for name, said in found.items() if said not in ("passed", "skipped")}
        assert len(found) > 200
        assert {name: said for name, said in failed.items() if name not in DIFFER} == {}
        assert set(DIFFER) - set(failed) == set(), "these pass by now: take them off the table"
        assert await states(busy) == before
        await busy.settle()


async def states(busy: Busy) -> dict[str, str]:
    """Return the states of all but the one that has finished: it is forgotten after a minute."""
    return {each: str(await busy.caller.state(each)) for each in [*busy.alive, busy.failed]}


def run_rqs_tests(source: Path, report: Path, busy: Busy) -> None:
    shutil.copy(ROOT / "tests" / "rq_beside.py", source)
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(source),
        "RQ_TESTS_REDIS": str(busy.redis.connection_pool.connection_kwargs["path"]),
        "RQ_TESTS_LIVING": ",".join([*busy.alive, busy.failed]),
        "RQ_TESTS_QUEUES": ",".join([*MODULES, LLM]),
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "rq_beside", "-p", "no:cacheprovider"),
            *("-p", "no:asyncio", "-p", "no:randomly", "--timeout", "60"),
            *("-c", os.devnull, "--rootdir", str(source), f"--junitxml={report}"),
            *(f"tests/{file}" for file in FILES),
        ],
        cwd=source,
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
