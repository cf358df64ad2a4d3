"""`aios test`: every check of the project, in the order of their price, in one report.

It needs the locked tools, which `./aios` has installed. pytest comes last, so that its closing line
ends what a CI log shows of a runner.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from aios_broker.config import environment
from aios_broker.contract.errors import InvalidConfig
from tests.lanes.pythons import Python, find_pythons, in_words

ROOT = Path(__file__).resolve().parents[2]
STEP_LIMIT_S = 3600.0  # a step that runs longer hangs; single tests have limits of their own
# Tests of one file share what is dear to start. Files go in the order of their names: unit tests,
# short and many, come last, so that no runner is left alone with a long file. One runner more than
# the two cores of CI: tests wait for leases, deadlines and other processes, and two of them kept
# the cores busy for three quarters of the time.
PARALLEL = ("-n", "3", "--dist", "loadfile", "--no-loadscope-reorder")
SGLANG_STAMP = Path(".aios/sglang/aios-sglang-cpu")  # made by `aios setup --sglang-cpu`
STEP_NAMES = ("lint", "format", "types", "imports", "pythons", "mutants", "pytest")
QUICK_STEPS = ("lint", "format", "types", "imports", "pytest")
# What the quick lane runs: the unit tests, and of the others the files that take less than four
# seconds each (measured 2026-11-28, two busy cores), some for each part of the kernel.
QUICK_TESTS = (
    "tests/unit",
    "tests/integration/test_access.py",
    "tests/integration/test_admission.py",
    "tests/integration/test_chat_answers.py",
    "tests/integration/test_chat_beams.py",
    "tests/integration/test_chat_tools.py",
    "tests/integration/test_cli_policy_migrate.py",
    "tests/integration/test_cli_quota.py",
    "tests/integration/test_client_faults.py",
    "tests/integration/test_contexts.py",
    "tests/integration/test_decided_leases.py",
    "tests/integration/test_exchange.py",
    "tests/integration/test_history.py",
    "tests/integration/test_hot_path.py",
    "tests/integration/test_last_try.py",
    "tests/integration/test_ledger_retention.py",
    "tests/integration/test_metrics.py",
    "tests/integration/test_policies_see_state.py",
    "tests/integration/test_queue_keys.py",
    "tests/integration/test_queue_many.py",
    "tests/integration/test_quotas.py",
    "tests/integration/test_scheduler_ordering.py",
    "tests/integration/test_sdk_map.py",
    "tests/integration/test_sdk_streams.py",
    "tests/integration/test_sdk_sync.py",
    "tests/integration/test_storage_operate.py",
    "tests/integration/test_worker.py",
    "tests/integration/test_worker_ahead.py",
    "tests/integration/test_worker_trust.py",
)
# Of these what takes long by itself: property tests with many examples, and mutants that are run.
QUICK_LEAVES_OUT = (
    "tests/unit/test_mutants.py",
    "tests/unit/test_simulated_core.py::test_cuts_under_constraints_change_nothing",
    "tests/unit/test_syscall.py::test_any_bytes_are_a_syscall_or_a_typed_error",
    "tests/unit/test_syscall.py::test_what_was_sent_is_read_back",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One check: what to call it and the arguments that Python runs it with."""

    name: str
    arguments: tuple[str, ...]
    note: str = ""  # for the report: what it does and does not cover here


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended: its exit code (0 is good) and the seconds that it took."""

    name: str
    exit_code: int
    took_s: float
    note: str = ""


@click.command(name="test", context_settings={"ignore_unknown_options": True})
@click.option("--quick", is_flag=True, help="Two minutes: no other Pythons, mutants, real models.")
@click.option("--slow", is_flag=True, help="Add the slow lane: minutes of cut points and load.")
@click.option("--sglang", is_flag=True, help="Run the tests on real SGLang servers, alone.")
@click.option("--mutants", is_flag=True, help="Run every mutant, alone.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(STEP_NAMES),
    help="Run this step and no other; may be given more than once.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write how each step ended as JSON.",
)
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
def test_command(  # noqa: PLR0913  one argument per option
    *,
    quick: bool,
    slow: bool,
    sglang: bool,
    mutants: bool,
    only: tuple[str, ...],
    json_path: Path | None,
    pytest_args: tuple[str, ...],
) -> None:
    """Check this checkout: lint, format, types, imports, other Pythons, mutants, tests.

    Of the mutants those run whose files were touched, by the last commit or since. What stands
    after the options goes to pytest: `aios test --only pytest -k lease -x`.
    """
    if sglang:
        check_sglang(ROOT)
    only = only or chosen_steps(quick=quick, sglang=sglang, mutants=mutants)
    try:
        pythons = find_pythons(environment()) if "pythons" in only else []
    except InvalidConfig as error:
        raise click.ClickException(f"{error}; {error.remedy}") from error
    steps = planned_steps(
        (*(quick_arguments() if quick else ()), *pytest_args),
        lane=chosen_lane(slow=slow, sglang=sglang),
        every_mutant=slow or mutants,
        pythons=pythons,
    )
    outcomes = [run_step(step, ROOT) for step in steps if step.name in only]
    report(outcomes)
    if json_path is not None:
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode(outcomes)) + b"\n")
    sys.exit(1 if any(outcome.exit_code for outcome in outcomes) else 0)


def chosen_steps(*, quick: bool, sglang: bool, mutants: bool) -> tuple[str, ...]:
    """Return the steps of a lane."""
    if sglang or mutants:
        return ("pytest",) if sglang else ("mutants",)
    return QUICK_STEPS if quick else STEP_NAMES


def quick_arguments() -> tuple[str, ...]:
    """Return what pytest is told to run in the quick lane."""
    return (*QUICK_TESTS, *(f"--deselect={each}" for each in QUICK_LEAVES_OUT))


def check_sglang(checkout: Path) -> None:
    """Fail with a word on how to mend it where no SGLang is installed."""
    if not (checkout / SGLANG_STAMP).is_file():
        raise click.ClickException(
            f"SGLang for the CPU is not installed in {(checkout / SGLANG_STAMP).parent}; "
            "make it with `./aios setup --sglang-cpu` (two minutes, 2.3 GB)"
        )


def chosen_lane(*, slow: bool, sglang: bool) -> str:
    """Return pytest's marker expression."""
    if sglang:
        return "sglang" if slow else "sglang and not slow"
    return "not sglang" if slow else "not slow and not sglang"


def planned_steps(
    pytest_args: tuple[str, ...],
    *,
    lane: str,
    every_mutant: bool = False,
    pythons: Sequence[Python] = (),
) -> list[Step]:
    """List the checks in order, the cheap ones first and pytest last."""
    parallel = () if any(each.startswith("-n") for each in pytest_args) else PARALLEL
    return [
        Step("lint", ("-m", "ruff", "check", ".")),
        Step("format", ("-m", "ruff", "format", "--check", ".")),
        Step("types", ("-m", "mypy")),
        Step("imports", ("-c", "from importlinter.cli import lint_imports_command as f; f()")),
        Step(
            "pythons",
            ("tests/lanes/pythons.py", *(python.path for python in pythons)),
            in_words(pythons),
        ),
        Step("mutants", ("tests/mutants/run.py", *(() if every_mutant else ("--touched",)))),
        Step("pytest", ("-m", "pytest", *parallel, "-m", lane, *pytest_args)),
    ]


def run_step(step: Step, checkout: Path) -> Outcome:
    """Run one step in the checkout, its output straight to ours. A hang counts as a failure."""
    click.secho(f"== {step.name}", bold=True)
    started_at = time.monotonic()
    try:
        exit_code = subprocess.run(
            # -P: the folders of the checkout (sdk, workers) must not pass for packages.
            [sys.executable, "-P", *step.arguments],
            cwd=checkout,
            env=environment_of_tests(environment()),
            timeout=STEP_LIMIT_S,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        click.echo(f"{step.name} was ended: not done after {STEP_LIMIT_S:.0f} s", err=True)
        exit_code = 1
    took_s = time.monotonic() - started_at
    click.echo(f"== {step.name}: {verdict(exit_code)}, {took_s:.1f} s\n")
    return Outcome(step.name, exit_code, took_s, step.note)


def environment_of_tests(variables: dict[str, str]) -> dict[str, str]:
    """Leave out AIOS_*: tests bring servers of their own and never touch the user's.

    And what forbids Python to keep what it has compiled: tests start hundreds of processes, and
    each would compile all that it imports anew.
    """
    return {
        name: value
        for name, value in variables.items()
        if not name.startswith("AIOS_") and name != "PYTHONDONTWRITEBYTECODE"
    }


def verdict(exit_code: int) -> str:
    """Say an exit code in a word."""
    return "ok" if exit_code == 0 else f"FAILED (exit code {exit_code})"


def report(outcomes: list[Outcome]) -> None:
    """Print one line per step: its verdict and its time."""
    click.secho("== summary", bold=True)
    for outcome in outcomes:
        note = f": {outcome.note}" if outcome.note else ""
        click.echo(
            f"{outcome.name:<10}{outcome.took_s:>8.1f} s   {verdict(outcome.exit_code)}{note}"
        )
    click.echo(f"{'together':<10}{sum(outcome.took_s for outcome in outcomes):>8.1f} s")
