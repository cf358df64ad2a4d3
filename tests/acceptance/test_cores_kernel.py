"""A kernel follows its file of cores: what has changed and nothing else; a key is seen nowhere."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import redis
from click.testing import CliRunner, Result

from aios_broker.config import KernelConfig
from aios_broker.contract.cores import SGLangSettings, SimulatedSettings
from aios_cli.core_views import CoreLine
from aios_cli.main import cli
from aios_local.cores_file import CoresFile
from aios_local.supervisor.kernel import EmbeddedKernel
from aios_local.supervisor.record import read_record
from aios_sdk import Agent, UnknownCore
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

KEY = "sk-nobody-may-see-this"
OTHER_KEY = "sk-nor-this-one"
LATER_KEY = "sk-nor-what-is-named-later"
PORT_OF_NOBODY = 9
STEADY = SimulatedSettings(slots=3, model="another", aliases=("gpt-4o-mini",))
KEYED = SGLangSettings(url=f"http://127.0.0.1:{PORT_OF_NOBODY}", api_key_env="THE_KEY")
LATE_S = 60.0  # the machine may be busy with other tests


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> KernelConfig:
    return KernelConfig(
        state_dir=tmp_path_factory.mktemp("state"),
        llm_core="simulated",
        tool_workers=0,
        state_workers=0,
    )


@pytest.fixture(scope="module")
def file(config: KernelConfig) -> CoresFile:
    """The kernel's file: a core that serves, one whose server is away, one that is wrong."""
    file = CoresFile(config.state_dir / "cores.toml")
    file.add("steady", STEADY)
    file.add("keyed", KEYED)
    with file.path.open("a") as text:
        text.write('\n[cores.wrong]\nkind = "gpt"\n')
    return file


@pytest.fixture(scope="module")
def kernel(config: KernelConfig, file: CoresFile) -> Iterator[EmbeddedKernel]:
    inherited = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "THE_KEY": KEY,
        "AIOS_SGLANG_API_KEY": OTHER_KEY,
        "A_WORD": LATER_KEY,
        "A_LATER_KEY": LATER_KEY,
    }
    with EmbeddedKernel(config, inherited=inherited) as running:
        yield running


@pytest.fixture
def aios(config: KernelConfig) -> Callable[..., Result]:
    """Run a command against that kernel."""

    def run(*arguments: str) -> Result:
        environ = {"AIOS_LLM_CORE": "simulated", "THE_KEY": KEY}
        return CliRunner().invoke(
            cli, ["--state-dir", str(config.state_dir), *arguments], env=environ
        )

    return run


def lines_of(aios: Callable[..., Result]) -> dict[str, CoreLine]:
    found = msgspec.json.decode(aios("cores", "list", "--json").stdout, type=list[CoreLine])
    return {line.name: line for line in found}


def serves(aios: Callable[..., Result], name: str) -> bool:
    return name in (lines := lines_of(aios)) and lines[name].state == "serves"


def answered_by(kernel: EmbeddedKernel, core: str | None = None) -> str:
    with Agent("ada", url=kernel.redis_url) as me:
        return me.llm.chat("Hello", max_tokens=4, core=core).core


def test_what_does_not_start_keeps_nobody_else_from_serving(
    kernel: EmbeddedKernel, aios: Callable[..., Result]
) -> None:
    lines = lines_of(aios)

    assert {name: line.state for name, line in lines.items()} == {
        "steady": "serves",
        "keyed": "fails",
        "wrong": "wrong",
        "simulated": "serves",
    }
    assert "cannot be reached" in lines["keyed"].problem
    assert "cores.wrong.kind" in lines["wrong"].problem
    assert (lines["steady"].workers, lines["steady"].alive) == (1, 1)
    assert [name for name, line in lines.items() if line.default] == ["simulated"]
    assert [answered_by(kernel, core) for core in ("steady", "gpt-4o-mini", "simulated", None)] == [
        "steady",
        "steady",
        "simulated",
        "simulated",
    ]
    status = aios("status").stdout
    assert "llm.keyed-1: the worker cannot go on: the SGLang server cannot be" in status
    assert "cores: cores.wrong.kind" in status
    assert aios("cores", "list").exit_code == 1  # something is unwell


def test_a_core_comes_and_goes_and_the_others_run_on(
    kernel: EmbeddedKernel, aios: Callable[..., Result]
) -> None:
    before = {one.name: one.pid for one in kernel.record.processes if one.state == "running"}

    added = aios("cores", "add", "guest", "--simulated", "--slots", "3", "--workers", "2")
    assert added.exit_code == 0, added.output
    assert "it serves" in added.output  # what is asked next may name it
    assert answered_by(kernel, "guest") == "guest"
    assert "cores check guest" in added.stdout
    checked = aios("cores", "check", "guest", "--timeout-s", str(LATE_S))
    assert checked.exit_code == 0, checked.output
    assert "3 slots" in checked.stdout
    assert "tokens/s" in checked.stdout
    wait_until(lambda: lines_of(aios)["guest"].alive == 2, LATE_S)

    removed = aios("cores", "remove", "guest")
    assert removed.exit_code == 0, removed.output
    wait_until(lambda: "guest" not in lines_of(aios), LATE_S)
    with pytest.raises(UnknownCore):
        answered_by(kernel, "guest")

    after = {one.name: one.pid for one in kernel.record.processes if one.state == "running"}
    assert after == before


def test_names_change_without_a_new_start_and_the_default_follows(
    kernel: EmbeddedKernel, aios: Callable[..., Result], file: CoresFile
) -> None:
    pid = kernel.process("llm.steady-1").pid

    assert aios("cores", "default", "steady").exit_code == 0
    wait_until(lambda: answered_by(kernel) == "steady", LATE_S)
    file.path.write_text(file.path.read_text().replace("gpt-4o-mini", "gpt-5"))
    wait_until(lambda: lines_of(aios)["steady"].aliases == ["gpt-5"], LATE_S)
    wait_until(lambda: _answers(kernel, "gpt-5") == "steady", LATE_S)

    assert kernel.process("llm.steady-1").pid == pid
    assert _answers(kernel, "gpt-4o-mini") is None


def _answers(kernel: EmbeddedKernel, core: str) -> str | None:
    try:
        return answered_by(kernel, core)
    except UnknownCore:
        return None


def test_what_makes_another_core_of_it_starts_it_alone_anew(
    kernel: EmbeddedKernel, aios: Callable[..., Result], file: CoresFile
) -> None:
    pid, other = kernel.process("llm.steady-1").pid, kernel.process("llm-1").pid

    file.path.write_text(file.path.read_text().replace("slots = 3", "slots = 5"))

    kernel.wait_running("llm.steady-1", not_pid=pid, timeout_s=LATE_S)
    wait_until(lambda: lines_of(aios)["steady"].slots == 5, LATE_S)
    assert kernel.process("llm-1").pid == other


def test_a_file_that_has_become_wrong_leaves_what_runs(
    kernel: EmbeddedKernel, aios: Callable[..., Result], file: CoresFile, config: KernelConfig
) -> None:
    pid, text = kernel.process("llm.steady-1").pid, file.path.read_text()

    file.path.write_text("[cores.steady\n")
    wait_until(lambda: "no TOML" in " ".join(read_record(config.state_dir).problems), LATE_S)
    assert answered_by(kernel, "steady") == "steady"
    assert "is no TOML" in (config.state_dir / "log" / "kernel.log").read_text()
    assert "is no TOML" in aios("status").stdout

    file.path.write_text(text.replace('kind = "simulated"', 'kind = "simulatd"', 1))
    wait_until(lambda: "simulatd" in " ".join(read_record(config.state_dir).problems), LATE_S)
    assert answered_by(kernel, "steady") == "steady"

    file.path.write_text(text)
    wait_until(lambda: len(read_record(config.state_dir).problems) == 1, LATE_S)
    assert kernel.process("llm.steady-1").pid == pid


def test_a_key_is_seen_by_the_process_that_needs_it_and_nobody_else(
    kernel: EmbeddedKernel, aios: Callable[..., Result], config: KernelConfig
) -> None:
    # Nothing answers at the keyed core's address: its process ends and is started anew.
    wait_until(lambda: "llm.keyed-1" in _told(kernel, THE_KEY=KEY), LATE_S)
    assert _told(kernel, A_LATER_KEY=LATER_KEY) == {}
    told = _told(kernel, THE_KEY=KEY, AIOS_SGLANG_API_KEY=OTHER_KEY)
    told.setdefault("llm.keyed-1", "THE_KEY")
    assert told == {"llm.keyed-1": "THE_KEY", "llm-1": "AIOS_SGLANG_API_KEY"}

    shown = [
        aios("cores", "show", "keyed", "--json").output,
        aios("cores", "show", "keyed").output,
        aios("cores", "list", "--json").output,
        aios("cores", "check", "keyed", "--timeout-s", "1").output,
        aios("status", "--json").output,
        *(path.read_text(errors="replace") for path in _files_of(config.state_dir)),
        *_command_lines(),
        _all_of_redis(kernel.redis_url),
    ]
    assert "THE_KEY" in shown[0]  # where the key is, is no secret
    for key in (KEY, OTHER_KEY):
        assert not [text[:200] for text in shown if key in text]


def test_a_key_that_a_core_names_later_leaves_all_other_processes(
    kernel: EmbeddedKernel, aios: Callable[..., Result], file: CoresFile
) -> None:
    """Nothing in its name says that it is one: who has it starts anew, the others run on."""
    assert {"scheduler", "llm-1", "llm.steady-1"} <= set(_told(kernel, A_WORD=LATER_KEY))
    file.add("later", msgspec.structs.replace(KEYED, api_key_env="A_WORD"))

    wait_until(lambda: set(_told(kernel, A_WORD=LATER_KEY)) <= {"llm.later-1"}, LATE_S)
    wait_until(lambda: kernel.process("llm.steady-1").state == "running", LATE_S)
    wait_until(lambda: _answers(kernel, "steady") == "steady", LATE_S)
    assert _told(kernel, THE_KEY=KEY).keys() <= {"llm.keyed-1"}


def _told(kernel: EmbeddedKernel, **keys: str) -> dict[str, str]:
    """Return which process has which key, of those that run now."""
    return {
        one.name: variable
        for one in kernel.record.processes
        for variable, key in keys.items()
        if one.pid is not None and f"{variable}={key}" in _environment_of(one.pid)
    }


def _environment_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:  # it has just ended
        return ""


def _files_of(state_dir: Path) -> Iterator[Path]:
    yield from (path for path in state_dir.iterdir() if path.is_file())
    yield from (path for path in (state_dir / "log").iterdir() if path.is_file())


def _command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(errors="replace")
        except OSError:  # it has ended
            continue


def _all_of_redis(url: str) -> str:
    """Return all keys and values, as Redis dumps them without compression."""
    with redis.Redis.from_url(url) as client:
        client.config_set("rdbcompression", "no")
        dumped = [client.dump(key) or b"" for key in client.scan_iter()]
        return b"".join([*client.scan_iter(), *dumped]).decode(errors="replace")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["steady", "--simulated"], "cores.steady"),
        (["simulated", "--simulated"], "cores.simulated"),  # the environment's
        (["x", "--gguf", "/nowhere/model.gguf"], "cores.x.gguf"),
        (["x", "--gguf", __file__], "cores.x.gguf"),
        (["x", "--url", "nowhere", "--model", "m"], "cores.x.url"),
        (["x", "--url", "http://x/v1"], "cores.x"),
        (["x", "--simulated", "--threads", "2"], "cores.x.threads"),
        (["x", "--simulated", "--fallback", "nobody"], "cores.x.fallback"),
        (["x", "--simulated", "--alias", "steady"], "cores.x.aliases"),
        (["x", "--simulated", "--price-in", "0.12345678"], "cores.x.price.input"),
        (
            ["x", "--url", "http://x/v1", "--model", "m", "--api-key-file", "/nowhere/key"],
            "cores.x.api_key_file",
        ),
    ],
)
def test_what_will_not_do_is_refused_by_name_and_nothing_is_written(
    kernel: EmbeddedKernel,
    aios: Callable[..., Result],
    file: CoresFile,
    options: list[str],
    field: str,
) -> None:
    before = file.path.read_bytes()

    refused = aios("cores", "add", *options, "--json")

    assert refused.exit_code == 2, refused.output
    error = json.loads(refused.stdout)["error"]
    assert (error["code"], error["field"]) == ("invalid-config", field)
    assert error["remedy"]
    assert file.path.read_bytes() == before


def test_a_key_of_several_lines_is_refused_when_it_is_added(
    kernel: EmbeddedKernel, aios: Callable[..., Result], tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("sk-one\nsk-two\n")

    refused = aios(
        "cores", "add", "x", "--url", "http://x/v1", "--model", "m", "--api-key-file", str(key)
    )

    assert refused.exit_code == 2
    assert "several lines" in refused.output
    assert "sk-one" not in refused.output
