"""`cores.toml`: what is wrong is named, with its core; the others can be run."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.catalogue import FILE_NAME, parse_catalogue, read_catalogue, read_secret
from aios_broker.config import ENVIRONMENT_CORES
from aios_broker.contract.cores import (
    LlamaSettings,
    OpenAISettings,
    Price,
    RateLimits,
    SGLangSettings,
    SimulatedSettings,
    process_version,
)
from aios_broker.contract.errors import InvalidConfig
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig

SOUND = '[cores.sound]\nkind = "simulated"\n'
WHOLE = """
[cores.qwen]
kind = "llama"
gguf = "/models/qwen.gguf"
slots = 4
aliases = ["gpt-4o-mini"]
fallback = ["hosted"]

[cores.hosted]
kind = "openai"
url = "https://llm.example.com/v1"
model = "big"
api_key_env = "EXAMPLE_KEY"
default = true
price = { input = 0.15, output = 0.6 }
limits = { requests_per_minute = 60 }
"""


def test_a_file_is_read_whole() -> None:
    catalogue = parse_catalogue(WHOLE)

    assert not catalogue.problems
    assert catalogue.cores == {
        "qwen": LlamaSettings(
            gguf="/models/qwen.gguf", slots=4, aliases=("gpt-4o-mini",), fallback=("hosted",)
        ),
        "hosted": OpenAISettings(
            url="https://llm.example.com/v1",
            model="big",
            api_key_env="EXAMPLE_KEY",
            default=True,
            price=Price(0.15, 0.6),
            limits=RateLimits(60),
        ),
    }


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    catalogue = read_catalogue(tmp_path / FILE_NAME)

    assert not catalogue.cores
    assert not catalogue.problems


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ('[cores.a]\nkind = "gpt"\n', "cores.a.kind", "gpt"),
        ("[cores.a]\nslots = 2\n", "cores.a", "kind"),
        ('[cores.a]\nkind = "llama"\nslot = 2\n', "cores.a.slot", "no setting 'slot'"),
        ('[cores.a]\nkind = "llama"\nslots = 0\n', "cores.a.slots", ">= 1"),
        ('[cores.a]\nkind = "llama"\nslots = "2"\n', "cores.a.slots", "int"),
        ('[cores."a b"]\nkind = "llama"\n', "cores.a b", "regex"),
        ('[cores.a]\nkind = "openai"\nmodel = "m"\n', "cores.a", "url"),
        ('[cores.a]\nkind = "openai"\nmodel = "m"\nurl = "ftp://x"\n', "cores.a.url", "ftp"),
        ('[cores.a]\nkind = "openai"\nmodel = "m"\nurl = "http://x:y/"\n', "cores.a.url", "x:y"),
        ('[cores.a]\nkind = "openai"\nmodel = "m"\nurl = "http://u:p@x/"\n', "cores.a.url", "pass"),
        ('[cores.a]\nkind = "openai"\nmodel = "m"\nurl = "http://x/\\n"\n', "cores.a.url", "addr"),
        ('[cores.a]\nkind = "sglang"\n', "cores.a.url", "neither"),
        (
            '[cores.a]\nkind = "sglang"\nurl = "http://x"\napi_key_env = "K"\napi_key_file = "f"\n',
            "cores.a.api_key_file",
            "api_key_env",
        ),
        ('[cores.a]\nkind = "llama"\nprice = {input = 0.1234567}\n', "cores.a.price.input", "six"),
        ('[cores.a]\nkind = "llama"\naliases = ["sound"]\n', "cores.a.aliases", "sound"),
        ('[cores.a]\nkind = "llama"\nfallback = ["nobody"]\n', "cores.a.fallback", "nobody"),
        ('[cores.a]\nkind = "llama"\nfallback = ["a"]\n', "cores.a.fallback", "a -> a"),
    ],
)
def test_what_is_wrong_with_a_core_is_its_own_problem(text: str, field: str, said: str) -> None:
    catalogue = parse_catalogue(SOUND + text)

    assert dict(catalogue.cores) == {"sound": SimulatedSettings()}
    [problem] = catalogue.problems.values()
    assert problem.field == field
    assert said in str(problem)
    assert problem.remedy
    with pytest.raises(InvalidConfig):
        catalogue.checked()
    assert catalogue.one("sound") == SimulatedSettings()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[cores.a\n", FILE_NAME),
        (SOUND + '[cores.a]\nkind = "llama"\n[cores.a]\nkind = "llama"\n', "cores.a"),
        ('[core.a]\nkind = "llama"\n', FILE_NAME),
        ("cores = 3\n", FILE_NAME),
    ],
)
def test_a_file_that_says_nothing_clearly_has_no_cores(text: str, field: str) -> None:
    catalogue = parse_catalogue(text)

    assert not catalogue.cores
    assert catalogue.problems[FILE_NAME].field == field
    with pytest.raises(InvalidConfig):
        catalogue.one("a")


def test_a_circle_of_fallbacks_takes_nobody_else_with_it() -> None:
    catalogue = parse_catalogue(
        SOUND
        + '[cores.a]\nkind = "llama"\nfallback = ["b"]\n'
        + '[cores.b]\nkind = "llama"\nfallback = ["a"]\n'
        + '[cores.c]\nkind = "llama"\nfallback = ["b"]\n'
    )

    assert set(catalogue.problems) == {"a"}  # without it there is no circle
    assert "a -> b -> a" in str(catalogue.problems["a"])
    assert set(catalogue.cores) == {"sound", "b", "c"}


def test_two_defaults_are_refused_and_the_first_stays() -> None:
    text = '[cores.a]\nkind = "llama"\ndefault = true\n[cores.b]\nkind = "llama"\ndefault = true\n'

    catalogue = parse_catalogue(text)

    assert set(catalogue.cores) == {"a"}
    assert catalogue.problems["b"].field == "cores.b.default"


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(b"\xff\xfe")

    assert str(path) in str(read_catalogue(path).problems[FILE_NAME])


HOSTED = OpenAISettings(url="https://x/v1", model="m", api_key_env="THE_KEY")


def test_a_key_is_read_from_the_variable_or_the_file_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-from-file\n")
    from_file = OpenAISettings(url="https://x/v1", model="m", api_key_file=str(file))

    assert read_secret(HOSTED, "a", {"THE_KEY": "sk-from-env"}) == "sk-from-env"
    assert read_secret(from_file, "a", {}) == "sk-from-file"
    assert read_secret(SimulatedSettings(), "a", {"THE_KEY": "sk"}) is None


@pytest.mark.parametrize("key", ["", " \n", "sk-secret\nsk-other", "sk-secret other", "sk-\x00"])
def test_a_key_that_is_none_is_refused_and_not_told(key: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        read_secret(HOSTED, "a", {"THE_KEY": key})

    assert caught.value.field == "cores.a.api_key_env"
    assert "THE_KEY" in str(caught.value)
    assert "sk-" not in str(caught.value)


@given(
    workers=st.integers(0, 64),
    aliases=st.lists(st.sampled_from("abc"), max_size=2).map(tuple),
    default=st.booleans(),
    price=st.none() | st.just(Price(1.0)),
)
def test_what_only_a_card_says_starts_nothing_anew(
    *, workers: int, aliases: tuple[str, ...], default: bool, price: Price | None
) -> None:
    core = SGLangSettings(
        url="http://x",
        workers=workers,
        aliases=aliases,
        default=default,
        price=price,
    )

    assert process_version(core) == process_version(SGLangSettings(url="http://x"))
    assert process_version(core) != process_version(SGLangSettings(url="http://y"))


def test_the_environments_core_has_the_name_of_its_model() -> None:
    assert {
        "llama": LlamaCppConfig().model,
        "simulated": SimulatedSettings().model,
    } == ENVIRONMENT_CORES
