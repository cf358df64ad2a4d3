"""Settings: read once, refused at start with the variable's name and what to do."""

import re
from pathlib import Path

import pytest
from msgspec import Struct

import aios_broker
from aios_broker.config import (
    PROCESS_PREFIXES,
    KernelConfig,
    default_state_dir,
    refuse_unknown,
    variables_of,
)
from aios_broker.contract.errors import InvalidConfig
from aios_broker.scheduler.config import SchedulerConfig
from aios_broker.traces.config import TracesConfig
from aios_kernel_api.config import ApiConfig
from aios_workers.config import WorkerConfig

HOME = {"HOME": "/home/somebody"}


def test_nothing_set_means_an_embedded_kernel_in_the_users_state_directory() -> None:
    config = KernelConfig.from_environment(HOME)
    assert config == KernelConfig(state_dir=Path("/home/somebody/.local/state/aios"))
    assert config.redis_url is None
    assert config.database_url is None


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_STATE_HOME": "/var/state"}, "/var/state/aios"),
        ({"XDG_STATE_HOME": "relative"}, "/home/somebody/.local/state/aios"),
        ({"XDG_STATE_HOME": ""}, "/home/somebody/.local/state/aios"),
    ],
)
def test_the_state_directory_follows_the_xdg_rules(environ: dict[str, str], expected: str) -> None:
    assert default_state_dir({**HOME, **environ}) == Path(expected)


def test_settings_survive_the_way_to_another_process() -> None:
    config = KernelConfig(
        state_dir=Path("/s"), redis_port=0, key_prefix="{a}:rq", llm_slots=5, llm_core="simulated"
    )
    assert KernelConfig.from_environment(config.variables()) == config


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AIOS_LLM_SLOTS", "0"),
        ("AIOS_LLM_SLOTS", "two"),
        ("AIOS_LLM_WORKERS", "-1"),
        ("AIOS_LLM_CORE", "gpt"),
        ("AIOS_REDIS_PORT", "70000"),
        ("AIOS_LOG_LEVEL", "loud"),
        ("AIOS_LOG_FORMAT", "xml"),
        ("AIOS_OTEL_ENDPOINT", "localhost:4318"),
        ("AIOS_REDIS_URL", "localhost:6379"),
        ("AIOS_DATABASE_URL", "mysql://db/x"),
        ("AIOS_POLICY", "First Come"),
    ],
)
def test_a_bad_value_names_its_variable_and_a_remedy(variable: str, value: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        KernelConfig.from_environment({**HOME, variable: value})
    assert caught.value.field == variable
    assert caught.value.remedy


def test_an_unknown_variable_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(InvalidConfig, match="did you mean AIOS_STATE_DIR") as caught:
        KernelConfig.from_environment({**HOME, "AIOS_STATEDIR": "/x"})
    assert caught.value.field == "AIOS_STATEDIR"


def test_variables_of_others_are_nobodys_business() -> None:
    KernelConfig.from_environment({**HOME, "AIOSQL": "1", "PATH": "/bin"})


def test_every_variable_that_the_code_reads_is_accepted() -> None:
    """A setting of a worker or of the scheduler must pass `aios up`, which hands it on."""
    root = Path(aios_broker.__file__).parents[2]
    sources = [*root.glob("*/aios_*/**/config.py"), *root.glob("*/aios_*/**/entry.py")]
    read = {
        name for path in sources for name in re.findall(r"\bAIOS_[A-Z_]+[A-Z]\b", path.read_text())
    }
    assert {"AIOS_QUANTUM_S", "AIOS_STATE_DIR"} <= read
    refuse_unknown(
        dict.fromkeys(read, "5"), known=variables_of(KernelConfig), passed_on=PROCESS_PREFIXES
    )


@pytest.mark.parametrize(
    "config", [ApiConfig, KernelConfig, SchedulerConfig, TracesConfig, WorkerConfig]
)
def test_every_setting_stands_in_the_reference(config: type[Struct]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
    assert [name for name in variables_of(config) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("cls", [SchedulerConfig, WorkerConfig])
def test_a_secret_may_be_a_file(
    cls: type[SchedulerConfig] | type[WorkerConfig], tmp_path: Path
) -> None:
    file = tmp_path / "url"
    file.write_text("redis://:pw@host:1/0\n")
    environ = {**HOME, "AIOS_REDIS_URL_FILE": str(file)}

    assert cls.from_environment(environ).redis_url == "redis://:pw@host:1/0"
    said = {**environ, "AIOS_REDIS_URL": "redis://other:1/0"}
    assert cls.from_environment(said).redis_url == "redis://other:1/0"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_a_file_that_holds_no_secret_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "url"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidConfig) as caught:
        KernelConfig.from_environment({**HOME, "AIOS_REDIS_URL_FILE": str(file)})
    assert caught.value.field == "AIOS_REDIS_URL_FILE"
    assert str(file) in caught.value.message


def test_what_is_no_secret_is_no_file() -> None:
    with pytest.raises(InvalidConfig) as caught:
        KernelConfig.from_environment({**HOME, "AIOS_POLICY_FILE": "/x"})
    assert caught.value.field == "AIOS_POLICY_FILE"
