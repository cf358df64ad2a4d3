"""Every Python and shell block of README and of docs runs as it stands, as readers run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.gguf_files import write_model
from tests.integration import test_door_pages

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 150  # of one block, on a machine that others use
RUN = ("sh", "python")
GGUF = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
# The name of the embedded model's core, served by the simulated one: pages are read in seconds. It
# has a price: budgets are refused where no core has one.
CORES = """
[cores.smollm2-135m]
kind = "simulated"
slots = 4
default = true
[cores.smollm2-135m.price]
input = 0.15
output = 0.60
currency = "EUR"
"""
BENCHMARK = "it takes minutes; its options: tests/unit/test_pages.py"
# A block begins so, and is not run here, because ...
ELSEWHERE = {
    "./aios demo": "tests/acceptance/test_demo.py runs it",
    "pip install '.[kernel]'": "tests/acceptance/test_installed.py runs it",
    "pip wheel --no-deps": "tests/acceptance/test_installed.py runs it",
    "pip install 'dist/aios_broker-0.1.0-py3-none-any.whl[sglang-server]'": "several GB",
    "aios files operate": "needs a model that plans; tests/integration/test_storage_operate.py",
    "aios cores pull": "needs the hub; tests/integration/test_cli_pull.py has one of its own",
    "AIOS_LLM_CORE=sglang": "needs a GPU; `./aios test --sglang` has servers on the CPU",
    "./aios setup --sglang-cpu": "2.3 GB; it is how that lane begins",
    "AIOS_SCHEDULERS=2 aios up": "tests/faults/test_ha_failover.py has two schedulers",
    "AIOS_REDIS_URL=redis://node-1": "tests/integration/test_cluster.py has a cluster",
    "AIOS_OTEL_ENDPOINT=": "tests/acceptance/test_metrics_pages.py has a collector",
    "python -m benchmarks.five_cores": BENCHMARK,
    "python -m benchmarks.llama_server": BENCHMARK,
    "python -m benchmarks.search.quality": BENCHMARK,
    "python -m benchmarks.gpu_check": BENCHMARK,
    "python benchmarks/ledger_drain.py": BENCHMARK,
    ".aios/venv/bin/python -m benchmarks.chaos.seeded": BENCHMARK,
    "./aios bench": BENCHMARK,
    "pg_dump --format=custom": "needs a superuser of a server that has it",
    "from kernel import": "it runs in a session; tests/integration/test_exec_sessions.py",
    "rq-dashboard": "it runs on; tests/integration/test_rq_dashboard.py",
    "rq worker": "it runs on; tests/integration/test_stock_rq_worker.py",
}
# Blocks that only describe other kernels: run on a state directory of their own.
ALONE = ("# Ollama", "aios cores add gpu --kind sglang")
RUNS_ALREADY = "./aios up --detach\n"  # the kernel that all pages share
FILE = re.compile(r"# (\w+\.py)\n")  # a block that begins so is saved under that name
IMPORTS = re.compile("^(?:import|from) ", re.MULTILINE)  # one without goes on with what was before
LAST = "docs/how-to-cores.md"  # it makes another core the default
pytestmark = pytest.mark.timeout(3 * LIMIT_S)


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a page."""

    kind: str
    text: str


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [Block(kind, block) for kind, block in found if kind in RUN]


def reason(block: Block) -> str | None:
    """Return why a block is not run here; None: it is."""
    return next((why for words, why in ELSEWHERE.items() if block.text.startswith(words)), None)


PAGES = [
    pytest.param(page, marks=[pytest.mark.slow] if page == LAST else [])
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "sdk" / "README.md"]
    for page in [path.relative_to(ROOT).as_posix()]
    if path.name not in test_door_pages.PAGES and any(not reason(b) for b in blocks_of(page))
]
PAGES.sort(key=lambda each: (each.values[0] == LAST, each.values))


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody in a folder of a checkout's kind, with a home of its own and no settings."""

    folder: Path
    environ: dict[str, str]

    def run(self, command: Sequence[str], **more: str) -> str:
        """Run a program there; return what it printed."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environ, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def shell(self, text: str, **more: str) -> str:
        return self.run(["bash", "-eu", "-o", "pipefail", "-c", text], **more)


def reader_in(folder: Path) -> Reader:
    """Return a reader in a new folder that looks like a checkout, with an empty home."""
    for name in ("aios", "examples", ".aios"):
        (folder / name).symlink_to(ROOT / name)
    home, programs = folder / "home", folder / "bin"
    home.mkdir()
    programs.mkdir()
    installed = f'#!/bin/sh\nexec {sys.executable} -P -m aios_cli "$@"\n'
    (programs / "aios").write_text(installed)
    (programs / "aios").chmod(0o755)
    path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    environ = {
        "PATH": os.pathsep.join(path),
        "HOME": str(home),
        "TERM": "dumb",
        "AIOS_LLM_CORE": "simulated",
        "AIOS_SIMULATED_CORE_DECODE_TOKENS_PER_S": "400",
    }
    return Reader(folder, environ)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader of docs, whose kernel runs."""
    found = reader_in(tmp_path_factory.mktemp("docs"))
    write_model(found.folder / GGUF)
    state = found.folder / "home" / ".local" / "state" / "aios"
    state.mkdir(parents=True)
    (state / "cores.toml").write_text(CORES)
    found.environ["AIOS_LLM_WORKERS"] = "0"
    found.run(["./aios", "up", "--detach"])
    try:
        status = json.loads(found.run(["./aios", "status", "--json"]))
        token = json.loads(found.run(["./aios", "agents", "register", "ada", "--json"]))["token"]
        found.environ.update(URL=status["redis_url"], AIOS_API=status["api_url"], AIOS_TOKEN=token)
        yield found
    finally:
        found.run(["./aios", "down"])


FRAGMENTS = """
import ast, asyncio, inspect, json, sys
from aios_sdk import AsyncAgent

async def main() -> None:
    async with AsyncAgent("reader") as me:
        space = {"me": me}
        for number, block in enumerate(json.load(open(sys.argv[1]))):
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            made = eval(compile(block, f"block {number}", "exec", flags), space)
            if inspect.isawaitable(made):
                await made

asyncio.run(main())
"""


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(reader: Reader, page: str, tmp_path: Path) -> None:
    blocks = [block for block in blocks_of(page) if reason(block) is None]
    # Recipes for an agent that is open run one after the other, in one program.
    recipes = "`me` is an open `AsyncAgent`" in (ROOT / page).read_text(encoding="utf-8")
    if recipes:
        file = tmp_path / "blocks.json"
        file.write_text(json.dumps([block.text for block in blocks if block.kind == "python"]))
        reader.run([sys.executable, "-P", "-c", FRAGMENTS, str(file)])
    before = ""
    for block in blocks:
        if block.text.startswith(ALONE):
            reader.shell(block.text, AIOS_STATE_DIR=str(tmp_path), EXAMPLE_KEY="x")
        elif block.kind == "sh":
            reader.shell(block.text.removeprefix(RUNS_ALREADY))
        elif not recipes:
            before = block.text if IMPORTS.search(block.text) else before + block.text
            if named := FILE.match(block.text):
                (reader.folder / named[1]).write_text(block.text)
            more = {"AIOS_REDIS_URL": reader.environ["URL"]} if '"AIOS_REDIS_URL"' in before else {}
            folder = str(reader.folder)
            reader.run([sys.executable, "-P", "-c", before], PYTHONPATH=folder, **more)


def test_a_new_users_way_through_the_readme(tmp_path: Path) -> None:
    """Top to bottom, in a folder and a home where nothing was: what it starts, it stops."""
    reader = reader_in(tmp_path)
    write_model(tmp_path / GGUF)
    said = []
    try:
        for block in blocks_of("README.md"):
            if reason(block):
                continue
            if block.kind == "python":
                (tmp_path / "rivers.py").write_text(block.text)
            else:
                said.append(reader.shell(block.text))
    finally:
        reader.run(["./aios", "down"])
    first, model, last = said
    assert "The kernel runs" in first
    assert "We meet on Mondays" in first
    assert "\nBuy milk" in first
    assert "waits for a person" not in first  # what is pasted waits for nobody
    assert model.strip()
    assert last.endswith("stopped\n")


def test_what_is_not_run_here_is_there_and_says_why() -> None:
    """No reason outlives its block, and the tests that it names exist."""
    pages = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md"))]
    blocks = [block for page in ["README.md", *pages] for block in blocks_of(page)]
    for words, why in ELSEWHERE.items():
        assert any(block.text.startswith(words) for block in blocks), words
        for path in re.findall(r"tests/[\w/]+\.py", why):
            assert (ROOT / path).exists(), path
