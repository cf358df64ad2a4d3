"""What a user's type checker knows of the SDK: arguments, results, and no attribute too many."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

USER = """
from aios_sdk import Agent, AsyncAgent

async def asynchronous() -> None:
    async with AsyncAgent("writer") as me:
        text: str = (await me.llm.chat("hello", max_tokens=3)).text
        number: int = (await me.llm.chat("hello")).text  # wrong
        me.llm.chat("hello", max_tokens="many")  # wrong
        me.llm.chant("hello")  # wrong
        await me.memory.add(5)  # wrong
        (await me.memory.add("a note")).contents  # wrong
        async with me.llm.chat.stream("hello") as stream:
            async for piece in stream:
                piece.upper()

with Agent("writer") as us:
    text: str = us.llm.chat("hello").text
    us.llm.chat("hello").txt  # wrong
    us.storage.read(path=5)  # wrong
    us.llm.chat.start("hello").results()  # wrong
    with us.llm.chat.stream("hello") as stream:
        for piece in stream:
            piece.upper()
"""


def test_a_users_type_checker_knows_the_tree(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(USER)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--no-incremental",
            "--config-file=",
            "--follow-imports=silent",
            str(program),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={
            "MYPYPATH": os.pathsep.join(str(ROOT / name) for name in ("broker", "sdk")),
            "PATH": os.environ.get("PATH", ""),
        },
    )
    found = {int(row.split(":")[1]) for row in done.stdout.splitlines() if ": error:" in row}
    wrong = {at for at, row in enumerate(USER.splitlines(), 1) if row.endswith("# wrong")}
    assert found == wrong, done.stdout
