"""Changes to `cores.toml`: what people wrote stays, and what would be wrong is not written."""

import threading
from pathlib import Path

import pytest

from aios_broker.contract.cores import (
    LlamaSettings,
    OpenAISettings,
    Price,
    RateLimits,
    SGLangSettings,
    SimulatedSettings,
)
from aios_broker.contract.errors import InvalidConfig, Unavailable
from aios_broker.process.child import try_lock
from aios_local import toml_file
from aios_local.cores_file import CoresFile

BY_HAND = """# mine
[cores.first]  # the one that I like
kind = "simulated"
default = true

# between
[cores.second]
kind = "llama"
gguf = "/models/m.gguf"
aliases = ["a"]  # as it was called

[cores.second.price]
input = 0.15
"""
FULL = OpenAISettings(
    url="https://x/v1",
    model="m",
    slots=8,
    aliases=("gpt-4o-mini",),
    fallback=("first",),
    price=Price(0.15, 0.6, currency="EUR"),
    limits=RateLimits(60, account="work"),
)


@pytest.fixture
def file(tmp_path: Path) -> CoresFile:
    return CoresFile(tmp_path / "state" / "cores.toml")


@pytest.fixture
def by_hand(file: CoresFile) -> CoresFile:
    file.path.parent.mkdir()
    file.path.write_text(BY_HAND.replace("input = 0.15", 'input = 0.15\ncurrency = "EUR"'))
    return file


@pytest.mark.parametrize(
    "core",
    [
        FULL.__class__(url="http://x/v1", model="m"),
        LlamaSettings(gguf="/m"),
        SimulatedSettings(seed=3),
    ],
)
def test_what_is_added_is_read_again(file: CoresFile, core: LlamaSettings) -> None:
    file.add("one", core)
    file.add("two.b", SGLangSettings(url="http://x", flags=("--a", "b")))

    assert file.read().checked() == {
        "one": core,
        "two.b": SGLangSettings(url="http://x", flags=("--a", "b")),
    }
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_comments_and_order_stay(by_hand: CoresFile) -> None:
    before = by_hand.path.read_text()

    by_hand.add("third", FULL)
    assert by_hand.path.read_text().startswith(before)
    assert by_hand.read().one("third") == FULL
    by_hand.remove("third")

    assert by_hand.path.read_text().rstrip() == before.rstrip()


SPACED = """# mine

# about the first
[cores.first]
kind = "simulated"
# so much about the first

# about the second
[cores.second]
kind = "simulated"  # and that
fallback = [
    "third",
]

[cores.second.limits]
requests_per_minute = 3
# about the third
[cores.third]
kind = "simulated"

# the end
"""


@pytest.mark.parametrize(
    ("name", "first_line", "gone"),
    [
        ("first", "[cores.first]", ("[cores.first]", 'kind = "simulated"', "# so much", "")),
        ("second", "[cores.second]", None),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_what_is_removed_takes_nobody_elses_comment_with_it(
    file: CoresFile, name: str, first_line: str, gone: tuple[str, ...] | None, line_end: str
) -> None:
    file.path.parent.mkdir()
    file.path.write_bytes(SPACED.replace("\n", line_end).encode())

    file.remove(name)

    lines = SPACED.splitlines()
    first = lines.index(first_line)
    last = first + len(gone) if gone is not None else lines.index("# about the third")
    expected = [*lines[:first], *lines[last:], ""]
    assert file.path.read_bytes().decode().split(line_end) == expected


@pytest.mark.parametrize("text", ["[cores]\na = {kind = 'simulated'}\nb.kind = 'simulated'\n"])
def test_what_is_written_in_another_way_is_removed_too(file: CoresFile, text: str) -> None:
    file.path.parent.mkdir()
    file.path.write_text(text)

    file.remove("a")

    assert set(file.read().checked()) == {"b"}


def test_lines_of_a_file_with_crlf_end_so(file: CoresFile) -> None:
    file.path.parent.mkdir()
    file.path.write_bytes(BY_HAND.replace("\n", "\r\n").encode())

    file.add("third", SimulatedSettings())
    file.make_default("third")

    text = file.path.read_bytes()
    assert text.count(b"\n") == text.count(b"\r\n") > BY_HAND.count("\n")
    assert text.startswith(BY_HAND.partition("default")[0].replace("\n", "\r\n").encode())


def test_one_default_takes_the_place_of_another(by_hand: CoresFile) -> None:
    by_hand.make_default("second")

    cores = by_hand.read().checked()
    assert [name for name, core in cores.items() if core.default] == ["second"]
    assert "# as it was called" in by_hand.path.read_text()

    by_hand.add("third", SimulatedSettings(default=True))
    cores = by_hand.read().checked()
    assert [name for name, core in cores.items() if core.default] == ["third"]


@pytest.mark.parametrize(
    ("name", "core", "field"),
    [
        ("first", SimulatedSettings(), "cores.first"),
        ("no name", SimulatedSettings(), "cores.no name"),
        ("a", SimulatedSettings(), "cores.second.aliases"),
        ("x", SimulatedSettings(aliases=("first",)), "cores.x.aliases"),
        ("x", SimulatedSettings(fallback=("nobody",)), "cores.x.fallback"),
        ("x", SimulatedSettings(fallback=("x",)), "cores.x.fallback"),
        ("x", OpenAISettings(url="nowhere", model="m"), "cores.x.url"),
        ("x", SimulatedSettings(price=Price(1.0)), "cores.x.price.currency"),
    ],
)
def test_what_would_be_wrong_is_not_written(
    by_hand: CoresFile, name: str, core: SimulatedSettings, field: str
) -> None:
    before = by_hand.path.read_bytes()

    with pytest.raises(InvalidConfig) as caught:
        by_hand.add(name, core)

    assert caught.value.field == field
    assert caught.value.remedy
    assert by_hand.path.read_bytes() == before


def test_what_another_falls_back_on_is_not_removed(by_hand: CoresFile) -> None:
    by_hand.add("third", SimulatedSettings(fallback=("first",)))

    with pytest.raises(InvalidConfig, match="no such core") as caught:
        by_hand.remove("first")

    assert caught.value.field == "cores.third.fallback"
    assert "first" in by_hand.read().cores


def test_what_is_not_there_is_said_so(by_hand: CoresFile) -> None:
    for change in (by_hand.remove, by_hand.make_default):
        with pytest.raises(InvalidConfig, match="no core 'nobody'") as caught:
            change("nobody")
        assert "first, second" in str(caught.value.remedy)


def test_a_core_that_is_wrong_already_is_in_nobodys_way(by_hand: CoresFile) -> None:
    by_hand.path.write_text(by_hand.path.read_text() + '\n[cores.wrong]\nkind = "gpt"\n')

    by_hand.add("third", SimulatedSettings())
    by_hand.remove("wrong")

    assert set(by_hand.read().checked()) == {"first", "second", "third"}


def test_a_file_that_cannot_be_read_is_left_as_it_is(by_hand: CoresFile) -> None:
    by_hand.path.write_text("[cores.a\n")

    with pytest.raises(InvalidConfig, match="no TOML"):
        by_hand.add("x", SimulatedSettings())

    assert by_hand.path.read_text() == "[cores.a\n"


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "dotfiles.toml", tmp_path / "cores.toml"
    real.write_text("# mine\n")
    link.symlink_to(real)

    CoresFile(link).add("a", SimulatedSettings())

    assert link.is_symlink()
    assert "[cores.a]" in real.read_text()


def test_who_changes_it_at_the_same_time_loses_nothing(file: CoresFile) -> None:
    names = [f"core{number}" for number in range(8)]
    threads = [
        threading.Thread(target=file.add, args=(name, SimulatedSettings())) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(file.read().checked()) == set(names)
    assert sorted(path.name for path in file.path.parent.iterdir()) == [
        "cores.toml",
        "cores.toml.lock",
    ]


def test_somebody_who_holds_the_lock_is_not_waited_for_for_ever(
    by_hand: CoresFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toml_file, "LOCK_LIMIT_S", 0.05)
    with by_hand.path.with_name("cores.toml.lock").open("w") as lock:
        assert try_lock(lock.fileno())

        with pytest.raises(Unavailable, match="another command"):
            by_hand.add("x", SimulatedSettings())
