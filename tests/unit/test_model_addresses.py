"""Addresses of model files: what is taken, and what would lead out of the folder of models."""

import pytest

from aios_broker.contract.errors import InvalidConfig
from aios_local.models.address import (
    HubAddress,
    WebAddress,
    core_name_of,
    parse_address,
    parts_of,
)


@pytest.mark.parametrize(
    ("text", "owner", "repo", "path"),
    [
        ("hf:org/repo-GGUF/model.Q4_K_M.gguf", "org", "repo-GGUF", "model.Q4_K_M.gguf"),
        ("hf:org/repo/Q4/model-Q4.gguf", "org", "repo", "Q4/model-Q4.gguf"),
        ("hf:org/repo", "org", "repo", ""),
        ("hf:org/repo/", "org", "repo", ""),
    ],
)
def test_a_file_of_the_hub(text: str, owner: str, repo: str, path: str) -> None:
    assert parse_address(text) == HubAddress(owner, repo, path)
    assert str(parse_address(text)) == text.rstrip("/")


@pytest.mark.parametrize(
    "text",
    [
        "hf:a/b/../../x.gguf",
        "hf:a/b/../x.gguf",
        "hf:../b/x.gguf",
        "hf:a/../x.gguf",
        "hf:a/b//x.gguf",
        "hf:a/b/.hidden.gguf",
        "hf:a/b/x..gguf",
        "hf:a/b/-x.gguf",
        "hf:a/b/x\\y.gguf",
        "hf:a/b/x\n.gguf",
        "hf:a/b/x\u202e.gguf",
        "hf:a/b/~/x.gguf",
        "hf:a/b/%2e%2e/x.gguf",
        "hf:a//x.gguf",
        "hf:/b/x.gguf",
        "hf:a",
        "hf:a/b/model.safetensors",
        f"hf:a/b/{'x' * 300}.gguf",
        "https://host/a/%2e%2e",
        "https://host/a/..%2fx.gguf",
        "https://host/a/%2fetc%2fx.gguf",
        "https://host/a/.gguf",
        "https://host/",
        "https:///x.gguf",
        "https://host:port/x.gguf",
        "https://[::1/x.gguf",
        "http://host/x.gguf",
        "ftp://host/x.gguf",
        "/etc/passwd",
        "model.gguf",
        "",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_address(text)
    assert caught.value.field == "address"
    assert caught.value.remedy


def test_a_plain_address_shows_none_of_its_secrets() -> None:
    address = parse_address("https://me:word@host.example:8443/a/m%20q.gguf?sig=secret#part")

    assert isinstance(address, WebAddress)
    assert (address.host, address.name) == ("host.example", "m q.gguf")
    assert str(address) == "https://host.example:8443/a/m%20q.gguf"


def test_an_address_without_encryption_needs_a_sum_unless_it_is_this_machine() -> None:
    assert isinstance(parse_address("http://host/m.gguf", has_sum=True), WebAddress)
    assert isinstance(parse_address("http://127.0.0.1:8080/m.gguf"), WebAddress)
    with pytest.raises(InvalidConfig, match="on the way"):
        parse_address("http://host/m.gguf")


def test_the_parts_of_a_model() -> None:
    assert parts_of("q/m-00002-of-00003.gguf") == [
        "q/m-00001-of-00003.gguf",
        "q/m-00002-of-00003.gguf",
        "q/m-00003-of-00003.gguf",
    ]
    assert parts_of("m.gguf") == ["m.gguf"]
    for wrong in ("m-00000-of-00003.gguf", "m-00004-of-00003.gguf", "m-00001-of-99999.gguf"):
        with pytest.raises(InvalidConfig, match="is part"):
            parts_of(wrong)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("q/Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf", "qwen2.5-coder-0.5b-instruct-q4_k_m"),
        ("m-00001-of-00003.gguf", "m"),
        ("My Model (v2).GGUF", "my-model-v2"),
    ],
)
def test_the_name_of_a_core(path: str, name: str) -> None:
    assert core_name_of(path) == name
