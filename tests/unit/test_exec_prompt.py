"""What is typed at the prompt of an exec session: when it is whole, and what Ctrl-C drops."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from aios_broker.contract.exec import Interpreter
from aios_cli.exec_prompt import HISTORY, TerminalLines, pieces

CTRL_C = "\x03"


class Given:
    """Lines that a test has written; `CTRL_C` among them is the key."""

    def __init__(self, lines: Iterable[str], *, is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        self.asked: list[bool] = []
        self._lines = iter(lines)

    def next(self, *, goes_on: bool) -> str:
        self.asked.append(goes_on)
        line = next(self._lines, None)
        if line is None:
            raise EOFError
        if line == CTRL_C:
            raise KeyboardInterrupt
        return line


def found(
    text: str, interpreter: Interpreter = "python", *, is_terminal: bool = False
) -> list[str]:
    return list(pieces(Given(text.split("\n"), is_terminal=is_terminal), interpreter))


def test_a_person_ends_a_block_by_an_empty_line() -> None:
    typed = "x = 1\n\ndef f():\n    return x\n\nf()"
    assert found(typed, is_terminal=True) == ["x = 1", "def f():\n    return x\n", "f()"]


def test_a_file_needs_none_and_may_have_some_within_a_block() -> None:
    text = """def f(x):
    y = x

    return y
f(1)
if f(1):
    a = 1
else:
    a = 2
@staticmethod
def g():
    pass

z = (1,
2)
try:
    f(2)
finally:
    f(3)"""
    assert found(text) == [
        "def f(x):\n    y = x\n\n    return y",
        "f(1)",
        "if f(1):\n    a = 1\nelse:\n    a = 2",
        "@staticmethod\ndef g():\n    pass\n",
        "z = (1,\n2)",
        "try:\n    f(2)\nfinally:\n    f(3)",
    ]


def test_what_is_wrong_is_for_the_session_to_tell() -> None:
    assert found("1 +\nx = )\n'\\400' is 1", is_terminal=True) == ["1 +", "x = )", "'\\400' is 1"]


def test_what_is_not_whole_at_the_end_is_run_all_the_same() -> None:
    assert found("f(1,") == ["f(1,"]


def test_ctrl_c_drops_what_was_typed_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Given(["def f():", CTRL_C, "1"], is_terminal=True)
    assert list(pieces(lines, "python")) == ["1"]
    assert lines.asked == [False, True, False, False]
    with pytest.raises(KeyboardInterrupt):
        list(pieces(Given([CTRL_C, "1"], is_terminal=False), "python"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash to ask")
def test_a_shells_lines_are_whole_when_bash_says_so() -> None:
    text = """cd d
for n in 1 2; do
  echo $n

done
echo "a
b"
cat <<END
text
END
echo a \\
  b
echo )"""
    assert found(text, "shell") == [
        "cd d",
        "for n in 1 2; do\n  echo $n\n\ndone",
        'echo "a\nb"',
        "cat <<END\ntext\nEND",
        "echo a \\\n  b",
        "echo )",
    ]


def test_lines_are_kept_for_their_owner_alone(tmp_path: Path) -> None:
    pytest.importorskip("readline")
    with TerminalLines("python").kept(tmp_path):
        pass
    assert (tmp_path / HISTORY).stat().st_mode & 0o077 == 0
    with TerminalLines("python").kept(tmp_path / "nowhere"):
        pass
