"""Operators' commands against a whole kernel, as a person or a script runs them."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aios_broker.config import KernelConfig
from aios_broker.contract.syscall import MODULES
from aios_cli.main import cli
from aios_local.supervisor.kernel import EmbeddedKernel
from tests.waiting import wait_until

SLOW_TOKENS_PER_S = "40"  # of the simulated core: long enough to be seen, short enough to wait for
LONG = ("--max-tokens", "4000")  # about 100 s
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKernel]:
    """A kernel with one slot of a slow simulated core: what comes second has to wait."""
    config = KernelConfig(
        state_dir=tmp_path_factory.mktemp("state"), llm_core="simulated", llm_slots=1, policy="fifo"
    )
    settings = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": SLOW_TOKENS_PER_S,
        "AIOS_SIMULATED_CORE_END_PROBABILITY": "0",
        "AIOS_LLM_CONTEXT_TOKENS": "8192",
    }
    with EmbeddedKernel(config, inherited=settings, temporary=True) as running:
        yield running


@pytest.fixture
def settings(kernel: EmbeddedKernel) -> Iterator[dict[str, str]]:
    """The environment of somebody who uses that kernel; what is left over is cancelled."""
    environment = {"AIOS_REDIS_URL": kernel.redis_url, "AIOS_STATE_DIR": kernel.record.state_dir}
    yield {name: value for name, value in environment.items() if value}
    left = [job["job_id"] for job in shown(environment, "ps")]
    if left:
        aios(environment, "kill", *left)


def aios(settings: dict[str, Any], *arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, list(arguments), env=settings, input=text)


def shown(settings: dict[str, Any], *arguments: str) -> Any:  # noqa: ANN401 - JSON
    result = aios(settings, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def detached(settings: dict[str, str], prompt: str, *options: str) -> str:
    result = aios(settings, "submit", "--detach", *options, prompt)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def state_of(settings: dict[str, str], job_id: str) -> str:
    return next((job["state"] for job in shown(settings, "ps") if job["job_id"] == job_id), "ended")


def test_a_tool_answers_with_plain_text(settings: dict[str, str]) -> None:
    result = aios(settings, "submit", "--tool", "echo", "hello, world")
    assert (result.exit_code, result.stdout) == (0, "hello, world\n")


def test_the_prompt_comes_from_standard_input_too(settings: dict[str, str]) -> None:
    result = aios(settings, "submit", "--tool", "echo", "-", text="two\nlines")
    assert result.stdout == "two\nlines\n"


def test_a_streamed_answer_equals_the_whole_one(settings: dict[str, str]) -> None:
    options = ("--max-tokens", "20", "--temperature", "0.8", "--seed", "7", "Tell a story.")
    reply = shown(settings, "submit", *options)
    streamed = aios(settings, "submit", *options)
    at_once = aios(settings, "submit", "--no-stream", *options)

    assert reply["result"]["usage"]["output_tokens"] == 20
    assert streamed.stdout == at_once.stdout == reply["result"]["text"] + "\n"


def test_the_same_key_is_the_same_syscall(settings: dict[str, str]) -> None:
    first, second = (shown(settings, "submit", "--tool", "echo", "--key", "k1", "x") for _ in "12")
    assert first == second


def test_a_detached_syscall_can_be_waited_for(settings: dict[str, str]) -> None:
    job_id = detached(settings, "Say something.", "--max-tokens", "5")
    attached = aios(settings, "submit", "--attach", job_id[:12])
    assert attached.exit_code == 0
    assert attached.stdout.strip()
    assert shown(settings, "why", job_id)["rule"] == "finished"


def test_ps_and_why_tell_who_runs_and_who_waits(settings: dict[str, str]) -> None:
    first = detached(settings, "one", *LONG, "--agent", "writer", "--program", "novel")
    wait_until(lambda: state_of(settings, first) == "running")
    second = detached(settings, "two", *LONG, "--agent", "reader")

    listed = {job["job_id"]: job for job in shown(settings, "ps")}
    assert (listed[first]["state"], listed[second]["state"]) == ("running", "queued")
    assert listed[first]["metadata"]["program"] == "novel"
    [only] = shown(settings, "ps", "--agent", "reader")
    assert only["job_id"] == second

    why = shown(settings, "why", second[:8])
    assert why["rule"] == "order"
    assert "1 of 1 slot busy" in why["text"]
    assert "writer" in why["text"]
    assert (why["numbers"]["position"], why["numbers"]["policy"]) == (1, "fifo")
    assert why["numbers"]["scheduler"] != "none lives: the last order, then arrival"
    assert shown(settings, "why", first)["rule"] == "running"

    lines = aios(settings, "ps").stdout.splitlines()
    assert lines[0].split()[:3] == ["ID", "PROGRAM", "AGENT"]
    assert lines[-1] == "2 syscalls: 1 running, 1 waiting"


def test_a_running_generation_is_suspended_and_goes_on(settings: dict[str, str]) -> None:
    job_id = detached(settings, "long", "--max-tokens", "150")
    wait_until(lambda: state_of(settings, job_id) == "running")

    assert aios(settings, "suspend", job_id[:8]).stdout == f"{job_id[:8]} held\n"
    wait_until(lambda: state_of(settings, job_id) == "held")
    assert shown(settings, "why", job_id)["rule"] == "held"

    assert aios(settings, "resume", job_id[:8]).exit_code == 0
    reply = shown(settings, "submit", "--attach", job_id)
    assert reply["result"]["usage"]["output_tokens"] == 150
    assert reply["timings"]["suspensions"] == 1


def test_a_killed_syscall_tells_whoever_waits(settings: dict[str, str]) -> None:
    job_id = detached(settings, "long", *LONG)
    wait_until(lambda: state_of(settings, job_id) == "running")
    assert aios(settings, "kill", job_id[:8]).stdout == f"{job_id[:8]} cancelled\n"

    attached = aios(settings, "submit", "--attach", job_id)
    assert attached.exit_code == 1
    assert attached.stderr.startswith("cancelled: an operator cancelled it")
    assert shown(settings, "why", job_id)["rule"] == "cancelled"
    again = aios(settings, "kill", job_id)
    assert again.exit_code == 4
    assert "has ended" in again.stderr


def test_an_interrupted_submit_cancels_its_syscall(settings: dict[str, str]) -> None:
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "aios_cli", "submit", "--key", "gone", *LONG, "x"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as submit:
        wait_until(lambda: [job["state"] for job in shown(settings, "ps")] == ["running"])
        submit.send_signal(signal.SIGINT)
        _, errors = submit.communicate(timeout=20)

    assert submit.returncode == 130
    job_id = errors.partition("cancelled ")[2].split()[0]
    assert shown(settings, "why", job_id)["rule"] == "cancelled"


def test_nice_is_seen_in_ps(settings: dict[str, str]) -> None:
    job_id = detached(settings, "long", *LONG)
    assert aios(settings, "nice", "-5", job_id[:8]).exit_code == 0
    [job] = shown(settings, "ps", "--module", "llm")
    assert job["metadata"]["nice"] == -5


@pytest.mark.parametrize(
    ("arguments", "code", "field"),
    [
        (("submit", "--tool", "nosuch", "x"), "unknown-module", "body.type"),
        (("submit", "--core", "nosuch", "x"), "unknown-core", "body.core"),
        (("submit", "--temperature", "9", "x"), "invalid-syscall", "body.temperature"),
        (("submit", "--max-tokens", "0", "x"), "invalid-syscall", "body.max_tokens"),
        (("submit", "--agent", "a b", "x"), "invalid-syscall", "agent"),
        (("submit", "--max-tokens", "8192", "x"), "context-too-long", "body.messages"),
        (("ps", "--module", "nosuch"), "unknown-module", "module"),
        (("why", "0123456789abcdef"), "unknown-syscall", "id"),
        (("why", "short"), "invalid-syscall", "id"),
        (("kill", "f" * 32), "unknown-syscall", "id"),
        (("agents", "register", "a b"), "invalid-syscall", "agent"),
    ],
)
def test_bad_input_is_a_typed_error_with_field_and_remedy(
    settings: dict[str, str], arguments: tuple[str, ...], code: str, field: str
) -> None:
    result = aios(settings, *arguments, "--json")
    error = json.loads(result.stdout)["error"]
    assert (error["code"], error["field"]) == (code, field)
    assert error["remedy"]
    assert result.exit_code == aios(settings, *arguments).exit_code == 4


def test_an_unknown_option_and_a_missing_prompt_are_usage_errors(settings: dict[str, str]) -> None:
    assert aios(settings, "submit", "--nosuch", "x").exit_code == 2
    assert aios(settings, "submit").exit_code == 2


@pytest.mark.parametrize("command", [("ps",), ("queues",), ("top",), ("submit", "x")])
def test_a_dead_redis_is_said_at_once(command: tuple[str, ...], tmp_path: Path) -> None:
    dead = {"AIOS_REDIS_URL": f"unix://{tmp_path}/none.sock"}
    result = aios(dead, *command)
    assert result.exit_code == 3
    assert result.stderr.startswith("redis-unavailable: AIOS_REDIS_URL: no Redis at unix://")


def test_queues_counts_each_module(settings: dict[str, str]) -> None:
    job_id = detached(settings, "long", *LONG)
    wait_until(lambda: state_of(settings, job_id) == "running")
    queues = {queue["module"]: queue for queue in shown(settings, "queues")}
    assert set(queues) == set(MODULES)
    assert (queues["llm"]["running"], queues["llm"]["policy"]) == (1, "fifo")
    assert aios(settings, "queues").stdout.splitlines()[0].split()[:2] == ["MODULE", "POLICY"]


def test_top_without_a_terminal_prints_frames_and_ends(settings: dict[str, str]) -> None:
    once = aios(settings, "top").stdout
    assert re.match(r"aios top  \d\d:\d\d:\d\d  5 workers, 0 of 161 slots busy\n", once)
    assert "\x1b" not in once
    frames = [
        json.loads(line) for line in aios(settings, "top", "-n", "2", "--json").stdout.splitlines()
    ]
    assert len(frames) == 2
    assert {worker["module"] for worker in frames[0]["workers"]} == set(MODULES)


def test_top_on_a_terminal_ends_with_q_and_gives_it_back(settings: dict[str, str]) -> None:
    leader, follower = pty.openpty()
    environment = {
        **os.environ,
        **settings,
        "TERM": "xterm",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "aios_cli", "top"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
    ) as top:
        os.close(follower)
        drawn = b""

        def frame_is_drawn() -> bool:
            nonlocal drawn
            if select.select([leader], [], [], 0)[0]:
                drawn += os.read(leader, 65_536)
            return b"no syscalls" in drawn

        wait_until(frame_is_drawn, timeout_s=20)
        os.write(leader, b"q")
        assert top.wait(timeout=10) == 0
    os.close(leader)
    assert b"\x1b[?1049h" in drawn  # the alternate screen: the shell's text is there again after it


def test_a_token_is_issued_once_and_differs_each_time(settings: dict[str, str]) -> None:
    first = shown(settings, "agents", "register", "token-holder")
    second = shown(settings, "agents", "token", "token-holder")
    assert first["agent"] == second["agent"] == "token-holder"
    assert first["token"].startswith("aios_")
    assert first["token"] != second["token"]


def test_strace_shows_a_call_with_its_arguments_and_its_answer(settings: dict[str, str]) -> None:
    job_id = detached(settings, "Name a colour.", "--max-tokens", "5", "--agent", "painter")
    line = aios(settings, "strace", job_id[:8], "--width", "12").stdout.strip()
    assert f' {job_id[:8]} painter/main llm.chat("Name a colo…", max_tokens=5) = "' in line
    assert re.search(r'" <waited .*, ran .*, 1 slice>$', line)

    told = json.loads(aios(settings, "strace", job_id, "--json").stdout)
    assert (told["job_id"], told["event"], told["agent"]) == (job_id, "finish", "painter")
    asked, answer = told["syscall"]["body"], told["reply"]["result"]
    assert asked["max_tokens"] == answer["usage"]["output_tokens"] == 5
    events = aios(settings, "strace", job_id, "--verbose").stdout.splitlines()
    assert [line.split()[2] for line in events[:-1]] == ["submit", "claim", "finish"]


def test_strace_follows_an_agent(kernel: EmbeddedKernel, settings: dict[str, str]) -> None:
    command = [sys.executable, "-m", "aios_cli", "strace", "--agent", "echoer", "-n", "2"]
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as following:
        answered = 0

        def both_were_seen() -> bool:
            nonlocal answered
            answered += 1
            aios(settings, "submit", "--tool", "echo", "--agent", "echoer", f"hello {answered}")
            return following.poll() is not None

        wait_until(both_were_seen, timeout_s=30)
        assert following.stdout is not None
        lines = following.stdout.read().splitlines()
    assert len(lines) == 2
    assert all(re.search(r'tool.echo\(text="hello \d+"\) = "hello \d+" <', line) for line in lines)


def test_the_journal_tells_what_happened(settings: dict[str, str]) -> None:
    aios(settings, "submit", "--tool", "echo", "--agent", "scribe", "x")
    lines = aios(settings, "journal", "--agent", "scribe").stdout.splitlines()
    assert [line.split()[2] for line in lines] == ["submit", "claim", "finish"]
    assert all("scribe/main" in line for line in lines)

    only = aios(settings, "journal", "-a", "scribe", "-e", "finish", "--json").stdout
    assert json.loads(only)["event"] == "finish"
    assert aios(settings, "journal", "-a", "nobody").stdout == ""


def test_a_run_is_written_as_a_trace(settings: dict[str, str], tmp_path: Path) -> None:
    for _ in range(2):
        aios(settings, "submit", "--tool", "echo", "--agent", "tracer", "--program", "run", "x")
    file = tmp_path / "run.json"
    wrote = aios(settings, "export", "trace", str(file), "--agent", "tracer", "--program", "run")
    assert "2 syscalls, 2 slices" in wrote.stdout
    spans = [one for one in json.loads(file.read_text())["traceEvents"] if one["ph"] == "X"]
    assert sorted(one["cat"] for one in spans) == sorted(["syscall", "wait", "slice", "slot"] * 2)

    piped = aios(settings, "export", "trace", "-", "--agent", "tracer").stdout
    assert len([one for one in json.loads(piped)["traceEvents"] if one["ph"] == "X"]) == len(spans)
    nothing = aios(settings, "export", "trace", str(file), "--program", "no-such")
    assert (nothing.exit_code, "unknown-syscall" in nothing.stderr) == (4, True)
    nowhere = aios(settings, "export", "trace", str(tmp_path / "no" / "x"), "--agent", "tracer")
    assert (nowhere.exit_code, "invalid-config: FILE" in nowhere.stderr) == (2, True)


def test_half_a_history_is_refused(settings: dict[str, str], tmp_path: Path) -> None:
    elsewhere = {**settings, "AIOS_STATE_DIR": str(tmp_path)}
    aios(settings, "submit", "--tool", "echo", "x")
    wait_until(lambda: aios(elsewhere, "journal").exit_code == 2)
    assert "AIOS_DATABASE_URL" in aios(elsewhere, "journal").stderr


def test_the_version_is_told() -> None:
    done = CliRunner().invoke(cli, ["--version"])
    assert done.output.startswith("aios 0.1.0 (Python 3.")
