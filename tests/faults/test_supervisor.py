"""The supervisor keeps a kernel's processes alive, stops them in order, and leaves none behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from aios_broker.config import KernelConfig
from aios_broker.contract.errors import InvalidConfig, KernelError, KernelNotRunning, Unavailable
from aios_broker.log import KernelLog
from aios_broker.postgres.database import check_database_url
from aios_local.supervisor import programs as programs_module
from aios_local.supervisor.kernel import EmbeddedKernel
from aios_local.supervisor.programs import Program
from aios_local.supervisor.record import ProcessRecord, find_kernel, read_record
from tests.stand_ins import (
    CRASH,
    CRASH_WORDS,
    DRAIN,
    POISONED,
    POISONED_AT_ONCE,
    SLEEP,
    STUBBORN,
    is_alive,
    python_program,
    with_descendants,
)
from tests.waiting import wait_until


@pytest.fixture
def config(tmp_path: Path) -> KernelConfig:
    """Settings of a kernel whose servers are its own."""
    return KernelConfig(state_dir=tmp_path / "state")


@pytest.fixture
def light(tmp_path: Path, redis_url: str) -> KernelConfig:
    """Settings of a kernel without servers of its own: starts at once."""
    return KernelConfig(
        state_dir=tmp_path / "state",
        redis_url=redis_url,
        database_url="postgresql://nobody@localhost/none",
    )


@pytest.fixture
def running(light: KernelConfig) -> Iterator[EmbeddedKernel]:
    with EmbeddedKernel(light, programs=[python_program("sleeper", SLEEP)]) as kernel:
        yield kernel


def log_of(config: KernelConfig) -> str:
    return (config.state_dir / "log" / "kernel.log").read_text()


def test_a_kernel_starts_its_servers_and_programs_and_leaves_nothing(config: KernelConfig) -> None:
    with EmbeddedKernel(config, programs=[python_program("sleeper", SLEEP)]) as kernel:
        record = find_kernel(config)
        assert record.state == "running"
        assert record.pid == os.getpid()
        assert (record.redis_url, record.database_url) == (kernel.redis_url, kernel.database_url)
        assert [one.name for one in record.processes] == ["redis", "postgres", "sleeper"]
        assert {one.state for one in record.processes} == {"running"}
        with redis.Redis.from_url(kernel.redis_url) as client:
            assert client.ping()
        pids = [one.pid for one in record.processes if one.pid is not None]
        assert len(pids) == 3
    assert not any(is_alive(pid) for pid in pids)
    assert not (config.state_dir / "kernel.json").exists()
    with pytest.raises(KernelNotRunning):
        find_kernel(config)


@pytest.mark.parametrize("server", ["redis", "postgres"])
def test_a_killed_server_comes_back_with_its_data(config: KernelConfig, server: str) -> None:
    with EmbeddedKernel(config, programs=[]) as kernel:
        with redis.Redis.from_url(kernel.redis_url) as client:
            client.set("kept", 1)
            wait_until(lambda: client.info("persistence")["aof_pending_bio_fsync"] == 0)
        libpq_url = check_database_url(kernel.database_url)
        with psycopg.connect(libpq_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS value")
        killed = kernel.kill(server)
        kernel.wait_running(server, not_pid=killed)
        with redis.Redis.from_url(kernel.redis_url) as client:
            assert client.get("kept") == b"1"
        with psycopg.connect(libpq_url) as connection:
            assert connection.execute("SELECT value FROM kept").fetchone() == (1,)
        assert kernel.process(server).restarts == 1


def test_a_killed_process_is_started_again(running: EmbeddedKernel) -> None:
    first = running.wait_running("sleeper")
    assert running.kill("sleeper") == first
    second = running.wait_running("sleeper", not_pid=first, timeout_s=2)
    assert is_alive(second)
    assert not is_alive(first)
    record = running.process("sleeper")
    assert (record.restarts, record.last_exit) == (1, -signal.SIGKILL)


def test_kills_that_were_asked_for_are_no_crash_loop(running: EmbeddedKernel) -> None:
    for _ in range(8):
        killed = running.kill("sleeper")
        running.wait_running("sleeper", not_pid=killed)
    assert running.process("sleeper").restarts == 8


def test_a_process_can_be_restarted_in_order(light: KernelConfig) -> None:
    with EmbeddedKernel(light, programs=[python_program("worker", DRAIN)]) as kernel:
        first = kernel.wait_running("worker")
        wait_until(lambda: "worker | at work" in log_of(light))
        kernel.restart("worker")
        kernel.wait_running("worker", not_pid=first)
        assert "worker | drained" in log_of(light)


def test_an_unknown_process_is_named_with_the_known_ones(running: EmbeddedKernel) -> None:
    with pytest.raises(InvalidConfig, match="no process is called 'sleper'") as caught:
        running.kill("sleper")
    assert caught.value.remedy == "one of: sleeper"


def test_a_crash_loop_is_given_up_and_reported_with_its_last_words(light: KernelConfig) -> None:
    never_ready = Program("broken", (sys.executable, "-c", CRASH), stage=0, ready="leading")
    kernel = EmbeddedKernel(light, programs=[never_ready])
    with pytest.raises(Unavailable, match="broken does not start: the reason of the crash"):
        kernel.run()
    assert "crash loop: 5 short lives in a row" in log_of(light)


@pytest.mark.parametrize("source", [POISONED, POISONED_AT_ONCE], ids=["later", "at once"])
def test_a_worker_that_its_jobs_kill_is_started_again_and_again(
    light: KernelConfig, source: str
) -> None:
    program = (sys.executable, "-c", source)
    worker = Program("worker", program, stage=0, ready="registered")
    with EmbeddedKernel(light, programs=[worker]) as kernel:
        wait_until(lambda: kernel.process("worker-1").restarts > 5, 30)
        assert "crash loop" not in log_of(light)


def test_a_wrong_setting_is_reported_at_once(light: KernelConfig) -> None:
    wrong = "import sys; print('AIOS_X: is not a number'); sys.exit(2)"
    kernel = EmbeddedKernel(light, programs=[python_program("worker", wrong, one_shot=True)])
    with pytest.raises(InvalidConfig, match="worker does not start: AIOS_X: is not a number"):
        kernel.run()
    assert log_of(light).count("ended by exit code 2") == 1


def test_a_crash_loop_of_one_program_leaves_the_others_at_work(light: KernelConfig) -> None:
    programs = [python_program("good", SLEEP), python_program("broken", CRASH, stage=1)]
    with EmbeddedKernel(light, programs=programs) as kernel:
        wait_until(lambda: kernel.process("broken").state == "failed")
        assert kernel.process("good").state == "running"
        broken = ProcessRecord("broken", "failed", None, 4, last_exit=1, last_words=CRASH_WORDS)
        wait_until(lambda: broken in read_record(light.state_dir).processes)


def test_stages_start_one_after_the_other_and_stop_the_other_way(light: KernelConfig) -> None:
    programs = [
        python_program("second", DRAIN, stage=2),
        python_program("first", DRAIN, stage=1),
        python_program("once", "print('migrated')", stage=0, one_shot=True),
    ]
    with EmbeddedKernel(light, programs=programs) as kernel:
        assert kernel.process("once").state == "done"
        wait_until(lambda: log_of(light).count("at work") == 2)
    lines = [line.split(" ", 1)[1] for line in log_of(light).splitlines()]
    spoken = [line for line in lines if not line.startswith("kernel")]
    assert spoken[0] == "once | migrated"
    assert spoken[-2:] == ["second | drained", "first | drained"]


def test_a_step_that_fails_keeps_the_rest_from_starting(light: KernelConfig) -> None:
    programs = [
        python_program("migrate", CRASH, stage=0, one_shot=True),
        python_program("worker", SLEEP, stage=1),
    ]
    kernel = EmbeddedKernel(light, programs=programs)
    with pytest.raises(Unavailable, match="migrate does not start: the reason"), kernel:
        pass  # not reached: entering raises
    assert "worker" not in log_of(light)


def test_what_does_not_drain_in_time_is_killed(
    light: KernelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs_module, "DRAIN_TIMEOUT_S", 0.2)
    with EmbeddedKernel(light, programs=[python_program("stubborn", STUBBORN)]) as kernel:
        pid = kernel.wait_running("stubborn")
        wait_until(lambda: "stubborn | at work" in log_of(light))
    assert not is_alive(pid)
    assert "did not stop in time and was killed" in log_of(light)


def test_a_second_kernel_on_the_same_state_directory_is_refused(
    light: KernelConfig, running: EmbeddedKernel
) -> None:
    second = EmbeddedKernel(light, programs=[])
    with pytest.raises(InvalidConfig, match=rf"already runs .*process {os.getpid()}") as caught:
        second.run()
    assert "aios down" in str(caught.value.remedy)
    assert running.process("sleeper").state == "running"
    assert (light.state_dir / "kernel.json").exists()


def test_an_error_inside_the_block_stops_the_kernel(light: KernelConfig) -> None:
    pids = []

    def use_and_fail() -> None:
        with EmbeddedKernel(light, programs=[python_program("sleeper", SLEEP)]) as kernel:
            pids.append(kernel.wait_running("sleeper"))
            raise LookupError

    with pytest.raises(LookupError):
        use_and_fail()
    assert [is_alive(pid) for pid in pids] == [False]


def test_a_temporary_kernel_deletes_its_data(config: KernelConfig) -> None:
    log = KernelLog()
    with EmbeddedKernel(config, programs=[], temporary=True, log=log):
        assert (config.state_dir / "postgres" / "PG_VERSION").exists()
    assert not config.state_dir.exists()


@pytest.mark.parametrize(
    ("field", "value", "variable"),
    [
        ("policy", "longest_first", "AIOS_POLICY"),
        ("redis_url", "unix:///x?db=one", "AIOS_REDIS_URL"),
        ("database_url", "mysql://h/x", "AIOS_DATABASE_URL"),
    ],
)
def test_settings_are_refused_before_anything_starts(
    tmp_path: Path, field: str, value: str, variable: str
) -> None:
    config = KernelConfig(**{"state_dir": tmp_path, field: value})  # type: ignore[arg-type]
    with pytest.raises(KernelError) as caught:
        EmbeddedKernel(config, programs=[])
    assert caught.value.field == variable


def test_kill_minus_9_of_the_supervisor_leaves_no_process(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    record_path = state_dir / "kernel.json"

    def is_running() -> bool:
        return record_path.exists() and json.loads(record_path.read_text())["state"] == "running"

    with subprocess.Popen(
        [sys.executable, "-c", RUN_KERNEL, str(state_dir)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as supervisor:
        try:
            wait_until(is_running, timeout_s=30)
            pids = [one["pid"] for one in json.loads(record_path.read_text())["processes"]]
            family = with_descendants(pids)
            assert len(family) > len(pids) == 3  # Postgres has children of its own
        finally:
            supervisor.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in family))
    # The record that stayed behind deceives nobody, and the directory can be used again.
    config = KernelConfig(state_dir=state_dir)
    with pytest.raises(KernelNotRunning, match=r"has died.*its log is .*kernel\.log"):
        find_kernel(config)
    told = subprocess.run(
        [sys.executable, "-m", "aios_cli", "status", "--state-dir", str(state_dir)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (told.returncode, "nobody stopped it" in told.stderr) == (3, True)
    with EmbeddedKernel(config, programs=[]) as kernel:
        assert find_kernel(config).redis_url == kernel.redis_url


RUN_KERNEL = """
import sys
from pathlib import Path
from aios_broker.config import KernelConfig
from aios_local.supervisor.kernel import EmbeddedKernel
from tests.stand_ins import STUBBORN, python_program

EmbeddedKernel(
    KernelConfig(state_dir=Path(sys.argv[1])), programs=[python_program("stubborn", STUBBORN)]
).run()
"""
