"""A kernel follows its file of cores: what is in the middle of being written stops nobody."""

from pathlib import Path

import pytest

from aios_broker.config import KernelConfig
from aios_broker.queues.keys import Keys
from aios_local.supervisor.cores import CoresWatch
from aios_local.supervisor.programs import kernel_programs, services_of

TWO = """[cores.a]
kind = "simulated"
slots = 3

[cores.b]
kind = "openai"
url = "http://127.0.0.1:9/v1"
model = "m"
api_key_env = "THE_WORD"
"""
RIGHT = {"llm.a-1", "llm.b-1"}


@pytest.fixture
def config(tmp_path: Path) -> KernelConfig:
    return KernelConfig(state_dir=tmp_path, llm_core="simulated")


@pytest.fixture
def path(config: KernelConfig) -> Path:
    path = config.state_dir / "cores.toml"
    path.write_text(TWO)
    return path


def names(watch: CoresWatch) -> set[str]:
    return {name for program in watch.programs for name in program.process_names}


def slots_changed(text: str) -> str:
    return text.replace("slots = 3", "slots = 4")


@pytest.mark.parametrize("text", ["", None, TWO.partition("\n\n")[0], slots_changed(TWO)])
def test_what_would_stop_a_core_is_done_when_the_next_look_agrees(
    config: KernelConfig, path: Path, text: str | None
) -> None:
    watch = CoresWatch(config)
    before = watch.programs
    assert names(watch) == RIGHT

    path.unlink() if text is None else path.write_text(text)
    assert not watch.look()
    assert watch.programs == before
    path.write_text(TWO)  # who wrote it was in the middle
    watch.look()
    assert watch.programs == before

    path.unlink() if text is None else path.write_text(text)
    assert [watch.look(), watch.look(), watch.look()] == [False, True, False]
    assert watch.programs != before


def test_who_failed_by_a_file_that_was_away_for_a_moment_is_tried_again(
    config: KernelConfig, path: Path
) -> None:
    watch = CoresWatch(config)
    away = path.with_suffix(".away")
    path.rename(away)
    assert not watch.look()
    away.rename(path)
    assert watch.look()  # what has failed is started; the others are as they were
    assert not watch.look()


def test_what_stops_nobody_is_done_at_once(config: KernelConfig, path: Path) -> None:
    watch = CoresWatch(config)
    path.write_text(TWO + '\n[cores.c]\nkind = "simulated"\n')
    assert watch.look()
    assert names(watch) == {*RIGHT, "llm.c-1"}
    path.write_text(path.read_text().replace("slots = 3", 'slots = 3\naliases = ["x"]'))
    assert watch.look()
    path.write_text(path.read_text().replace("slots = 3", "slots = 3\nlimits = {account = 'x'}"))
    before = watch.programs
    assert watch.look()
    assert watch.programs == before  # its worker obeys it as it runs


# Keys.


def environments(config: KernelConfig, watch: CoresWatch) -> dict[str, set[str]]:
    """Return the variables of each process, of those that are of interest here."""
    variables = {
        "AIOS_REDIS_URL": "redis://x",
        "RQ_KEY_PREFIX": "rq",
        "PGPASSWORD": "p",
        "HF_TOKEN": "h",
        "LATER_KEY": "k",
        "THE_WORD": "w",
        "AN_ODD_NAME": "o",
        "SGLANG_MAX_NEW_TOKENS_ESTIMATION": "4096",
        "AIOS_SGLANG_API_KEY": "s",
    }
    programs = [*kernel_programs(config), *watch.programs]
    stages = services_of(programs, variables, Keys(), watch.secrets)
    usual = {"AIOS_REDIS_URL", "RQ_KEY_PREFIX", "PGPASSWORD", "SGLANG_MAX_NEW_TOKENS_ESTIMATION"}
    given = {one.name: set(one.environment) for stage in stages for one in stage}
    assert all(variables >= usual for variables in given.values())
    return {name: variables - usual for name, variables in given.items()}


def test_a_key_goes_to_the_process_whose_core_names_it_alone(
    config: KernelConfig, path: Path
) -> None:
    """Also one that no core names yet, and one of an entry that is wrong."""
    odd = {"AN_ODD_NAME"}
    assert environments(config, CoresWatch(config)) == {
        "migrate": odd,
        "scheduler": odd,
        "llm-1": {"AIOS_SGLANG_API_KEY", *odd},
        "tool-1": odd,
        "state-1": odd,
        "api": odd,
        "llm.a-1": odd,
        "llm.b-1": {"THE_WORD", *odd},
    }
    for wrong in ('\nkind = "nothing"', '\nkind = "openai"\nurl = 3', "\n[cores.w"):
        path.write_text(f'{TWO}\n[cores.w]\napi_key_env = "AN_ODD_NAME"{wrong}\n')
        given = environments(config, CoresWatch(config))
        assert not [name for name, variables in given.items() if "AN_ODD_NAME" in variables]


def test_a_key_that_is_named_later_is_nobody_elses_from_then_on(
    config: KernelConfig, path: Path
) -> None:
    watch = CoresWatch(config)
    entry = '[cores.c]\nkind = "sglang"\nurl = "http://x"\napi_key_env = "AN_ODD_NAME"\n'
    path.write_text(f"{TWO}\n{entry}")
    assert watch.look()
    given = environments(config, watch)
    assert [name for name, variables in given.items() if "AN_ODD_NAME" in variables] == ["llm.c-1"]
    assert [name for name, variables in given.items() if "HF_TOKEN" in variables] == ["llm.c-1"]
    path.write_text(TWO)
    watch.look()
    assert watch.look()
    given = environments(config, watch)  # whose it was does not come back
    assert not [name for name, variables in given.items() if "AN_ODD_NAME" in variables]


def test_a_hubs_token_that_is_a_cores_key_is_that_ones_alone(
    config: KernelConfig, path: Path
) -> None:
    path.write_text(
        TWO.replace("THE_WORD", "HF_TOKEN") + '\n[cores.c]\nkind = "sglang"\nurl = "http://x"\n'
    )
    given = environments(config, CoresWatch(config))
    assert [name for name, variables in given.items() if "HF_TOKEN" in variables] == ["llm.b-1"]
