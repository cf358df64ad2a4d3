"""What a user's type checker knows of the SDK: arguments, results, and no attribute too many."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

USER = """
from aios_sdk import Agent, AsyncAgent, Image, LlmChat, LlmEmbed, Message, ObjectRef, Tool, ToolCall

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

def lists() -> None:
    image, call, tool = Image("image/png", ""), ToolCall("1", "f", ""), Tool("f")
    turn = Message("user", "hello", images=[image], tool_calls=[call])
    with Agent("writer") as me:
        me.llm.chat([turn], tools=[tool], stop=["."])
        me.llm.chat([{"role": "user", "content": "hello"}], tools=[{"name": "f"}])
        me.llm.embed(["a", "b"])
        me.llm.count(["a", "b"])
        me.llm.chat.map(["a", "b"])
        me.context.set([turn])
        me.context.expand([turn])
        note = me.memory.add("a note", keywords=["a"], tags=["b"], links=[])
        me.memory.evolve("a note", tags=["b"])
        me.memory.update(note.id, keywords=["a"], tags=["b"], links=[])
        me.memory.list(tags=["b"])
        me.memory.search("a note", tags=["b"])
        me.memory.share(agent="ann", verbs=["read"])
        me.storage.share("notes", agent="ann", verbs=["read"])
        me.access.grant(ObjectRef("block"), ["read"], agent="ann")
        me.submit(LlmChat([turn], stop=["."], tools=[tool]))
        me.submit(LlmEmbed(["a"]))

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
