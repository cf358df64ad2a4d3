"""A worker's settings: what is wrong stops the process at start, by name."""

from pathlib import Path

import pytest

from aios_broker.contract.cores import LlamaSettings, SimulatedSettings
from aios_broker.contract.errors import InvalidConfig
from aios_workers.__main__ import EXIT_USAGE, main
from aios_workers.config import WorkerConfig
from aios_workers.runtime.loop import Limits

REDIS = {"AIOS_REDIS_URL": "redis://127.0.0.1:1/0"}


def test_settings_are_read() -> None:
    config = WorkerConfig.from_environment(
        {
            **REDIS,
            "RQ_KEY_PREFIX": "{a}:rq",
            "AIOS_LLM_CORE": "simulated",
            "AIOS_LLM_SLOTS": "3",
            "AIOS_WORKER_LEASE_S": "2.5",
            "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": "40",
        }
    )

    assert (config.key_prefix, config.llm_core) == ("{a}:rq", "simulated")
    assert config.limits == Limits(lease_s=2.5, drain_s=Limits().drain_s)
    name, core = config.core(None)
    assert name == ""  # its model's
    assert core == SimulatedSettings(
        slots=3, context_tokens=2048, decode_tokens_per_s=40.0, default=True
    )


def test_settings_of_the_kernels_other_processes_are_left_alone() -> None:
    WorkerConfig.from_environment(
        {**REDIS, "AIOS_POLICY": "rr", "AIOS_LLM_WORKERS": "2", "AIOS_SCHEDULER_LEASE_S": "1"}
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AIOS_LLM_SLOT", "2"),
        ("AIOS_SIMULATED_CORE_SPEED", "9"),
        ("AIOS_WORKER_LEASE", "4"),
        ("AIOS_DATABASE_UR", "postgresql://x"),
        ("AIOS_TOOL_SLOTS", "0"),
        ("AIOS_LLM_CORE", "gpt"),
        ("AIOS_SIMULATED_CORE_END_PROBABILITY", "2"),
        ("AIOS_REDIS_URL", "http://redis"),
        ("AIOS_REDIS_URL", ""),
        ("AIOS_DATABASE_URL", "mysql://x"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        WorkerConfig.from_environment({**REDIS, name: value})

    assert caught.value.field == name
    assert caught.value.remedy


def test_the_process_says_what_is_wrong_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["llm"], {}) == EXIT_USAGE
    assert "AIOS_REDIS_URL" in capsys.readouterr().err


def test_a_module_without_workers_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["dance"], REDIS)

    assert caught.value.code == EXIT_USAGE
    assert "'dance' (choose from 'llm', 'memory', 'storage', 'tool'" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["memory", "storage", "access"])
def test_a_state_module_needs_a_database(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([module], REDIS) == EXIT_USAGE
    assert "AIOS_DATABASE_URL" in capsys.readouterr().err


def test_a_core_of_the_file_is_read_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "cores.toml"
    path.write_text('[cores.qwen]\nkind = "llama"\ngguf = "/models/qwen.gguf"\nslots = 4\n')

    config = WorkerConfig.from_environment({**REDIS, "AIOS_CORES": str(path)})

    assert config.core("qwen") == ("qwen", LlamaSettings(gguf="/models/qwen.gguf", slots=4))
    with pytest.raises(InvalidConfig, match="no core 'other'") as caught:
        config.core("other")
    assert caught.value.field == "cores.other"
    assert "qwen" in str(caught.value.remedy)


def test_the_file_lies_in_the_state_directory_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "cores.toml").write_text('[cores.toy]\nkind = "simulated"\n')

    config = WorkerConfig.from_environment({**REDIS, "AIOS_STATE_DIR": str(tmp_path)})

    assert config.core("toy") == ("toy", SimulatedSettings())


def test_the_environments_core_is_the_default_where_no_core_of_the_file_is(tmp_path: Path) -> None:
    config = WorkerConfig.from_environment({**REDIS, "AIOS_STATE_DIR": str(tmp_path)})
    assert config.core(None)[1].default

    (tmp_path / "cores.toml").write_text('[cores.toy]\nkind = "simulated"\n')
    assert config.core(None)[1].default

    (tmp_path / "cores.toml").write_text('[cores.toy]\nkind = "simulated"\ndefault = true\n')
    assert not config.core(None)[1].default


@pytest.mark.parametrize("text", ["[cores.toy\n", '[cores.toy]\nkind = "gpt"\ndefault = true\n'])
def test_who_runs_stays_the_default_or_not_while_the_file_does_not_tell(
    tmp_path: Path, text: str
) -> None:
    config = WorkerConfig.from_environment({**REDIS, "AIOS_STATE_DIR": str(tmp_path)})
    assert config.settings_now(None).default
    (tmp_path / "cores.toml").write_text(text)
    with pytest.raises(InvalidConfig):
        config.settings_now(None)
    if text.endswith("true\n"):
        (tmp_path / "cores.toml").write_text(
            text + '[cores.other]\nkind = "simulated"\ndefault = true\n'
        )
        assert not config.settings_now(None).default


def test_another_module_has_no_cores(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["tool", "--core", "qwen"], REDIS)

    assert caught.value.code == EXIT_USAGE
    assert "--core" in capsys.readouterr().err
