"""The API keeps its port over restarts, and leaves one that somebody else has taken."""

import socket
from pathlib import Path

from aios_local.supervisor.api_port import NAME, api_port

HOST = "127.0.0.1"


def test_the_port_is_the_same_at_the_next_start(tmp_path: Path) -> None:
    first = api_port(tmp_path, HOST, 0)
    assert first > 0
    assert api_port(tmp_path, HOST, 0) == first


def test_a_port_that_is_taken_meanwhile_is_left_to_its_holder(tmp_path: Path) -> None:
    first = api_port(tmp_path, HOST, 0)
    with socket.socket() as holder:
        holder.bind((HOST, first))
        holder.listen()
        second = api_port(tmp_path, HOST, 0)
    assert second not in (0, first)
    assert api_port(tmp_path, HOST, 0) == second


def test_one_that_is_asked_for_is_taken_as_it_is(tmp_path: Path) -> None:
    assert api_port(tmp_path, HOST, 8420) == 8420
    assert not (tmp_path / NAME).exists()


def test_a_note_that_cannot_be_read_is_written_anew(tmp_path: Path) -> None:
    for garbage in ("", "many", "-1", "99999999"):
        (tmp_path / NAME).write_text(garbage)
        assert api_port(tmp_path, HOST, 0) > 0
