"""Break the kernel on purpose, one line at a time: the property tests must notice each break.

    python tests/mutants/run.py            all mutants
    python tests/mutants/run.py submit     those whose file or name contains the word
    python tests/mutants/run.py --touched  those of the files that the last commit, the commits of
                                           this branch or nobody's commit yet have touched

Each mutant is a copy of the broker's or the workers' package with one piece of text replaced, put
before the installed one on the path; of the migrations, with the broker's package beside them. A
mutant that survives means that a promise is not tested.
Random tests may miss a rare case once: what survives their usual examples is judged by others
before it is called a survivor, and one that only those killed ("killed late") wants a test of its
own. Exit code 0 only when the unbroken tests pass and every mutant dies.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, the checkout is not on the path

from tests.mutants.a2a import A2A_MUTANTS  # noqa: E402
from tests.mutants.admission import ADMISSION_MUTANTS  # noqa: E402
from tests.mutants.api import API_MUTANTS  # noqa: E402
from tests.mutants.audit import AUDIT_MUTANTS  # noqa: E402
from tests.mutants.catalogue import BROKER, MIGRATIONS, Mutant  # noqa: E402
from tests.mutants.catalogue import MUTANTS as BROKER_MUTANTS  # noqa: E402
from tests.mutants.cores import CORE_MUTANTS  # noqa: E402
from tests.mutants.exec import EXEC_MUTANTS  # noqa: E402
from tests.mutants.forms import FORM_MUTANTS  # noqa: E402
from tests.mutants.gateway import GATEWAY_MUTANTS  # noqa: E402
from tests.mutants.identity import IDENTITY_MUTANTS  # noqa: E402
from tests.mutants.kernel_tools import KERNEL_TOOL_MUTANTS  # noqa: E402
from tests.mutants.kv_states import KV_STATE_MUTANTS  # noqa: E402
from tests.mutants.limits import LIMIT_MUTANTS  # noqa: E402
from tests.mutants.money import MONEY_MUTANTS  # noqa: E402
from tests.mutants.notes import NOTE_MUTANTS  # noqa: E402
from tests.mutants.order import ORDER_MUTANTS  # noqa: E402
from tests.mutants.ownership import OWNERSHIP_MUTANTS  # noqa: E402
from tests.mutants.page import PAGE_MUTANTS  # noqa: E402
from tests.mutants.redis_users import REDIS_USER_MUTANTS  # noqa: E402
from tests.mutants.remote import REMOTE_MUTANTS  # noqa: E402
from tests.mutants.routing import ROUTING_MUTANTS  # noqa: E402
from tests.mutants.rq import RQ_MUTANTS  # noqa: E402
from tests.mutants.sandbox_files import SANDBOX_FILES_MUTANTS  # noqa: E402
from tests.mutants.sessions import SESSION_MUTANTS  # noqa: E402
from tests.mutants.stalls import STALL_MUTANTS  # noqa: E402
from tests.mutants.state import STATE_MUTANTS  # noqa: E402
from tests.mutants.tools import TOOL_MUTANTS  # noqa: E402
from tests.mutants.workers import WORKER_MUTANTS  # noqa: E402
from tests.mutants.workspace import WORKSPACE_MUTANTS  # noqa: E402

MUTANTS = (
    *BROKER_MUTANTS,
    *ADMISSION_MUTANTS,
    *GATEWAY_MUTANTS,
    *A2A_MUTANTS,
    *ORDER_MUTANTS,
    *FORM_MUTANTS,
    *RQ_MUTANTS,
    *ROUTING_MUTANTS,
    *WORKER_MUTANTS,
    *WORKSPACE_MUTANTS,
    *KV_STATE_MUTANTS,
    *STATE_MUTANTS,
    *NOTE_MUTANTS,
    *API_MUTANTS,
    *IDENTITY_MUTANTS,
    *REDIS_USER_MUTANTS,
    *AUDIT_MUTANTS,
    *STALL_MUTANTS,
    *MONEY_MUTANTS,
    *LIMIT_MUTANTS,
    *CORE_MUTANTS,
    *TOOL_MUTANTS,
    *EXEC_MUTANTS,
    *SANDBOX_FILES_MUTANTS,
    *KERNEL_TOOL_MUTANTS,
    *REMOTE_MUTANTS,
    *OWNERSHIP_MUTANTS,
    *SESSION_MUTANTS,
    *PAGE_MUTANTS,
)

WORKERS = 2
TESTS_FAILED = 1  # pytest's exit code; below 0: a signal has ended it
TIMEOUT_S = 200.0  # a test that hangs has noticed, too
# Nobody reads how a mutant failed; and before CPython 3.11.8 pytest may die as it shows the lines:
# two `ast.parse` at a time, of which one is a logged traceback's, mix up their depths (gh-106905).
UNSHOWN = "--tb=no"
SLOWER = 3.0  # so many times as long as unbroken a test may take, on a machine that is busy
UNBROKEN_TIMEOUT_S = 900.0
MOST_TOUCHED = 40  # run of those whose files were touched; else they take longer than the tests
SAMPLE_EVERY = 10
OTHER_SEEDS = (1, 2, 3)  # of the examples that judge what survived the usual ones


def run_tests(
    test: str,
    package_root: Path,
    *options: str,
    seed: int = 0,
    timeout_s: float = UNBROKEN_TIMEOUT_S,
) -> subprocess.CompletedProcess[str]:
    """Run one test file against the package below `package_root`, with more options for pytest.

    The environment tells the test to stop at the first failure instead of looking for a shorter
    one, and to take other examples than usual where there is a seed: see tests/examples.py.
    """
    roots = [package_root, ROOT, *(ROOT / name for name in ("broker", "sdk", "workers"))]
    path = " ".join(f'"{root}"' for root in roots)
    environment = {**os.environ, "PYTHONPATH": str(package_root), "MUTANT": "1"}
    if seed:
        environment["MUTANT_SEED"] = str(seed)
        options = (*options, f"--hypothesis-seed={seed}")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            test,
            "-x",
            "-q",
            "-m",
            "not slow",
            "-p",
            "no:cacheprovider",
            "-o",
            f"pythonpath={path}",
            *options,
        ],
        cwd=ROOT,
        env=environment,
        timeout=timeout_s,
        capture_output=True,
        text=True,
        check=False,
    )


def timed(test: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a test against what is not broken; return how it ended, and in how many seconds."""
    began_s = time.monotonic()
    return run_tests(test, BROKER.parent), time.monotonic() - began_s


def judge(mutant: Mutant, folder: Path, timeout_s: float) -> str:
    """Return what became of a mutant: killed, killed late, SURVIVED, or OUT OF DATE."""
    root = Path(tempfile.mkdtemp(dir=folder))
    copy = root / mutant.package.name
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(mutant.package, copy, ignore=ignored)
    target = copy / (ROOT / mutant.file).relative_to(mutant.package)
    source = target.read_text()
    if mutant.old not in source:
        return "OUT OF DATE"
    target.write_text(source.replace(mutant.old, mutant.new, 1))
    if mutant.package == MIGRATIONS:  # the package looks for them beside the folder it lies in
        root /= "broker"
        shutil.copytree(BROKER, root / BROKER.name, ignore=ignored)
    if is_noticed(mutant, root, 0, timeout_s):
        return "killed"
    if draws_examples(mutant.test) and any(
        is_noticed(mutant, root, seed, timeout_s) for seed in OTHER_SEEDS
    ):
        return "killed late"
    return "SURVIVED"


def is_noticed(mutant: Mutant, root: Path, seed: int, timeout_s: float) -> bool:
    """Return whether the mutant's test fails, dies, or hangs, with these examples."""
    try:
        done = run_tests(mutant.test, root, UNSHOWN, seed=seed, timeout_s=timeout_s)
    except subprocess.TimeoutExpired:
        return True
    if done.returncode > TESTS_FAILED:  # neither passed nor failed: what it is must be looked at
        print(f"{mutant.name}: pytest ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.returncode == TESTS_FAILED or done.returncode < 0


def draws_examples(test: str) -> bool:
    """Return whether a test file takes random examples, so that another run may see more."""
    return "from hypothesis import" in (ROOT / test.partition("::")[0]).read_text()


def chosen_mutants(words: list[str]) -> list[Mutant]:
    """Return the mutants that a command line asks for."""
    if words != ["--touched"]:
        return [m for m in MUTANTS if all(word in m.file + " " + m.name for word in words)]
    touched = touched_files(ROOT)
    if touched is None:
        print("git does not say what was touched (a shallow clone?): a fixed sample runs")
        return list(MUTANTS[::SAMPLE_EVERY])
    found = [m for m in MUTANTS if not touched.isdisjoint((m.file, m.test.partition("::")[0]))]
    every = -(-len(found) // MOST_TOUCHED) or 1
    print(f"{len(found)} mutants of {len(touched)} touched files; {len(found[::every])} run")
    return found[::every]


def touched_files(root: Path) -> set[str] | None:
    """Return the files that differ from where this branch began, or on `main` from its last commit.

    What is not committed counts. None where git has nothing to compare with.
    """
    head = git(root, "rev-parse", "HEAD")
    bases = [git(root, "merge-base", "HEAD", other) for other in ("origin/HEAD", "main")]
    bases.append(git(root, "rev-parse", "--verify", "HEAD~1"))
    base = next((base for base in bases if base not in (None, head)), None)
    told = git(root, "diff", "--name-only", base) if base else None
    return None if told is None else set(told.splitlines())


def git(root: Path, *arguments: str) -> str | None:
    """Return what git says; None where it fails."""
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


def main(words: list[str]) -> int:
    """Run all mutants that match; return the exit code."""
    chosen = chosen_mutants(words)
    with (
        tempfile.TemporaryDirectory(prefix="aios-mutants-") as folder,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        tests = sorted({mutant.test for mutant in chosen})
        limits_s: dict[str, float] = {}
        for test, (unbroken, took_s) in zip(tests, pool.map(timed, tests), strict=True):
            if unbroken.returncode != 0:
                print(f"the unbroken tests fail already: {test}\n{unbroken.stdout}")
                return 1
            limits_s[test] = max(TIMEOUT_S, SLOWER * took_s)
        verdicts = []
        for mutant, verdict in zip(
            chosen,
            pool.map(lambda m: judge(m, Path(folder), limits_s[m.test]), chosen),
            strict=True,
        ):
            verdicts.append(verdict)
            print(f"{verdict:11} {mutant.file}: {mutant.name}", flush=True)
    dead = sum(verdict.startswith("killed") for verdict in verdicts)
    print(f"{dead} of {len(chosen)} mutants killed")
    return 0 if (chosen or words == ["--touched"]) and dead == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
