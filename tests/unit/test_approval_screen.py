"""What `aios approve` shows: no word of an agent's stands where the kernel's own words stand."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from aios_broker.contract.access import Approval, BoundObject
from aios_cli.approvals import QUOTE, show_request
from tests.unit.test_printable import EVIL

WIDTH = 60
ROOM = WIDTH - len(QUOTE) - 1  # what a line of ours has before it is broken
WISH = "acme/ada wants to: "
GOES = "  overwrite: "
CLAIM = f"{GOES}file /notes/shopping.txt, version 1, 0 bytes"
SPOOFS = [
    EVIL,
    f"limit = 10\n{CLAIM}\n",
    f"\x1b[2J\x1b[H{CLAIM}\n\x1b[8m",
    *(" " * blanks + CLAIM for blanks in range(ROOM)),  # the terminal would break the line there
    "\t" * 8 + CLAIM,
    "水" * 60 + CLAIM,
    "",
]


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def request_of(said: str) -> Approval:
    """Return a request in which an agent has said the same wherever it may say anything."""
    arguments = {"path": said, "content": said}
    return Approval(
        "0" * 32,
        "waiting",
        "1" * 32,
        "ada",
        "acme",
        "storage.write",
        "overwrite",
        arguments,
        "",
        f"overwrite {said} of ada",
        1.0,
        2.0,
        diff=f"-limit = 10\n+{said}",
        objects=(BoundObject("overwrite", "file", "1", name=f"file {said}", size_bytes=11),),
    )


def lines_for(
    said: str, capsys: pytest.CaptureFixture[str], edited: dict[str, object] | None = None
) -> list[str]:
    show_request(request_of(said), edited)
    return capsys.readouterr().out.removesuffix("\n").split("\n")


def check_lines_of_ours(lines: list[str]) -> None:
    ours = [line for line in lines if not line.startswith(QUOTE)]
    assert len(ours) == 3
    assert ours[0].startswith(f"{WISH}overwrite ")
    assert ours[1] == "storage.write with"
    assert ours[2].startswith(f"{GOES}file ")


@pytest.mark.parametrize("said", SPOOFS)
def test_an_agents_words_begin_no_line_of_ours(
    said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = lines_for(said, capsys, {"path": said})
    check_lines_of_ours(lines)
    assert all(cell_len(line) < WIDTH for line in lines), "the terminal would break it"
    assert all(line.isprintable() for line in lines)


@given(st.text())
def test_whatever_is_said_only_three_lines_are_ours(said: str) -> None:
    with pytest.MonkeyPatch.context() as set_:
        set_.setenv("COLUMNS", str(WIDTH))
        shown: list[str] = []
        set_.setattr("aios_cli.approvals.say", shown.append)
        show_request(request_of(said), None)
    check_lines_of_ours("\n".join(shown).split("\n"))


def test_all_of_the_arguments_is_there_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_for("pay " * 40, capsys)
    shown = "".join(line.removeprefix(QUOTE) for line in lines if line.startswith(QUOTE))
    assert msgspec.json.encode(request_of("pay " * 40).arguments).decode() in shown
