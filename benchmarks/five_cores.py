"""One fleet with five cores, of every kind: each syscall once, by the core it named, paid exactly.

    python -m benchmarks.five_cores --gguf FILE [--syscalls 500] [--json FILE]
    ... [--sglang-url http://127.0.0.1:30000/v1 --sglang-model NAME]

Run it in the checkout's root, as a user would: `aios cores add` for each, `aios up`, then a mixed
load of clients. The cores:

    file     the GGUF file, in a worker
    twin     the small model of `aios setup` under a second name, from a copy of its file
    server   llama.cpp's own server over HTTP with the GGUF file
    sglang   the /v1 of an SGLang server that runs (docs/how-to-sglang.md); without one it is left
             out, and said to be
    hosted   a stand-in for a hosted API: a key, a limit of its account, faults now and then

Prints what came, checks it, and ends with exit code 1 where anything is not as it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aios_broker.contract.cores import Price
from aios_broker.contract.errors import KernelError
from aios_broker.contract.money import Billed, cost_pico, nano
from aios_broker.contract.reply import ChatResult
from aios_sdk import AsyncAgent
from aios_workers.model_files import SMOLLM2
from tests.llama_server import LlamaServer
from tests.openai_endpoint import Fault, OpenAIEndpoint

KEY_VARIABLE = "FIVE_CORES_KEY"
START_LIMIT_S = 120.0
POLL_S = 0.5
CLIENTS = 8
IN_FLIGHT = 6  # of each
MOST_TOKENS = 24  # of an answer
FAULTS: tuple[Fault, ...] = ("busy", "broken", "html", "hang")  # before a first token
FAULT_EACH = 12  # requests of the hosted core
PRICES = {  # per million tokens, in and out; made up
    "file": Price(input=0.1, output=0.4, cached_input=0.05),
    "twin": Price(input=0.02, output=0.03),
    "server": Price(input=0.1, output=0.4),
    "sglang": Price(input=0.3, output=0.9),
    "hosted": Price(input=2.5, output=10.0, cached_input=1.25),
}
ASKED_AGAIN = frozenset({"server", "sglang", "hosted"})
QUESTIONS = (
    "Name a river of Europe.",
    "Write a Python function that adds two numbers.",
    "What is the capital of Peru?",
    "Count from one to ten.",
    "Give me a word for the colour of the sky.",
)


@dataclass
class Kernel:
    """A kernel of its own, told what to do by its command line."""

    state_dir: Path
    environ: Mapping[str, str] = field(default_factory=dict)

    def aios(self, *arguments: str) -> str:
        """Run a command and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "aios_cli", *arguments],
            env={**os.environ, **self.environ, "AIOS_STATE_DIR": str(self.state_dir)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = done.stderr.strip() or done.stdout.strip()
            raise SystemExit(f"aios {' '.join(arguments)}: {said}")
        return done.stdout

    @contextmanager
    def up(self, names: Sequence[str]) -> Iterator[str]:
        """Run it for the length of a block; gives its Redis's address when all cores serve."""
        self.aios("up", "--detach")
        try:
            self._wait_for(names)
            yield str(json.loads(self.aios("status", "--json"))["redis_url"])
        finally:
            self.aios("down")

    def _wait_for(self, names: Sequence[str]) -> None:
        until_s = time.monotonic() + START_LIMIT_S
        while True:
            lines = json.loads(self.aios("cores", "list", "--json"))
            states = {line["name"]: line for line in lines}
            if all(states[name]["state"] == "serves" for name in names):
                return
            if time.monotonic() > until_s:
                shown = {name: states[name]["state"] for name in names}
                raise SystemExit(f"not all cores serve after {START_LIMIT_S:g} s: {shown}")
            time.sleep(POLL_S)


@dataclass
class Load:
    """What was asked, and what came."""

    asked: Counter[str] = field(default_factory=Counter)
    answers: dict[str, list[ChatResult]] = field(default_factory=lambda: defaultdict(list))
    failures: list[str] = field(default_factory=list)

    async def run(self, url: str, names: Sequence[str], syscalls: int, seed: int) -> None:
        """Ask all cores, in an order of chance, through several clients."""
        chance = random.Random(seed)
        wanted = [names[number % len(names)] for number in range(syscalls)]
        chance.shuffle(wanted)
        calls = (
            (name, f"{chance.choice(QUESTIONS)} ({number})", chance.randint(1, MOST_TOKENS))
            for number, name in enumerate(wanted)
        )

        async def client(number: int) -> None:
            async with AsyncAgent(f"client-{number}", url=url) as agent:
                await asyncio.gather(*(self._ask(agent, calls) for _ in range(IN_FLIGHT)))

        await asyncio.gather(*map(client, range(CLIENTS)))

    async def _ask(self, agent: AsyncAgent, calls: Iterator[tuple[str, str, int]]) -> None:
        for name, question, max_tokens in calls:
            self.asked[name] += 1
            try:
                result = await agent.llm.chat(question, core=name, max_tokens=max_tokens)
            except KernelError as error:
                self.failures.append(f"{name}: {error.code}: {error}")
            else:
                self.answers[name].append(result)


def add_cores(kernel: Kernel, options: argparse.Namespace, endpoint: OpenAIEndpoint) -> list[str]:
    """Add the cores by the command line; return their names."""
    twin = kernel.state_dir / "twin.gguf"
    packaged = SMOLLM2.find()
    if packaged is None:
        raise SystemExit("the small model is not installed: `aios setup`")
    shutil.copyfile(packaged, twin)
    with_key = ("--api-key-env", KEY_VARIABLE, "--rpm", str(options.hosted_rpm))
    added = {
        "file": ("--gguf", str(options.gguf), "--slots", "4", "--default"),
        "twin": ("--gguf", str(twin), "--slots", "4"),
        "server": ("--url", options.server_url, "--model", "served", "--slots", "2"),
        "hosted": ("--url", endpoint.url, "--model", "stand-in", "--slots", "4", *with_key),
    }
    if options.sglang_url is None:
        say("sglang is left out: no --sglang-url (docs/how-to-sglang.md says how to start one)")
    else:
        model = ("--model", options.sglang_model, "--slots", "4")
        added["sglang"] = ("--url", options.sglang_url, *model)
    for name, arguments in added.items():
        kernel.aios("cores", "add", name, *arguments, *_price_arguments(PRICES[name]))
    return list(added)


def _price_arguments(price: Price) -> tuple[str, ...]:
    cached = () if price.cached_input is None else ("--price-cached", str(price.cached_input))
    return ("--price-in", str(price.input), "--price-out", str(price.output), *cached)


def check(load: Load, ledger: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return what is not as it should be: answers, who gave them, tokens and cost."""
    wrong = list(load.failures)
    for name in names:
        answers = load.answers[name]
        if len(answers) != load.asked[name]:
            wrong.append(f"{name}: {len(answers)} answers to {load.asked[name]} syscalls")
        others = Counter(one.core for one in answers if one.core != name)
        if others:
            wrong.append(f"{name}: answered by {dict(others)}")
        unpaid = [one.usage for one in answers if not is_paid(name, one)]
        if unpaid:
            wrong.append(f"{name}: {len(unpaid)} costs are wrong, such as that of {unpaid[0]}")
        expected = {
            "finished": len(answers),
            "prompt_tokens": sum(one.usage.prompt_tokens for one in answers),
            "tokens": sum(one.usage.output_tokens for one in answers),
            "cost": sum(one.usage.cost_nano or 0 for one in answers),
        }
        found = ledger.get(name)
        if found != expected:
            wrong.append(f"{name}: the ledger has {found}, the answers {expected}")
    return wrong


def is_paid(name: str, result: ChatResult) -> bool:
    """Tell whether an answer costs what its tokens cost.

    An endpoint that is asked again, after a cut or a failure, has read the prompt again and is paid
    for it: there it may be more.
    """
    paid, cost = result.usage.cost_nano, cost_of(name, result)
    return paid is not None and (paid >= cost if name in ASKED_AGAIN else paid == cost)


def cost_of(name: str, result: ChatResult) -> int:
    """Return what an answer costs, in billionths, reckoned anew from its tokens."""
    usage = result.usage
    billed = Billed(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
    )
    return nano(cost_pico(PRICES[name], billed))


def read_ledger(kernel: Kernel) -> dict[str, dict[str, int]]:
    """Return what the ledger has of each core, as `aios usage` shows it."""
    lines = json.loads(kernel.aios("usage", "--by", "core", "--hours", "24", "--json"))
    return {
        line["core"]: {
            "finished": line["use"]["finished"],
            "prompt_tokens": line["use"]["prompt_tokens"],
            "tokens": line["use"]["tokens"],
            "cost": sum(line["use"]["cost_nano"].values()),
        }
        for line in lines
        if line["module"] == "llm" and line["core"]
    }


def check_hosted(load: Load, endpoint: OpenAIEndpoint) -> list[str]:
    """Compare what the stand-in charged with what the kernel says that it used."""
    answers = load.answers["hosted"]
    charged = (endpoint.prompt_tokens, endpoint.output_tokens)
    used = (
        sum(one.usage.prompt_tokens for one in answers),
        sum(one.usage.output_tokens for one in answers),
    )
    bill = Billed(prompt_tokens=charged[0], output_tokens=charged[1])
    cost, paid = (
        nano(cost_pico(PRICES["hosted"], bill)),
        sum(one.usage.cost_nano or 0 for one in answers),
    )
    if (charged, cost) == (used, paid):
        return []
    return [f"hosted: it charged {charged} tokens, {cost}; known are {used}, {paid}"]


def run(options: argparse.Namespace) -> int:
    """Run it all; return the exit code."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aios-five-")))
        key = secrets.token_hex(16)
        endpoint = OpenAIEndpoint(key=key, requests_per_minute=options.hosted_rpm)
        stack.enter_context(endpoint.running())
        chance = random.Random(options.seed)
        server = stack.enter_context(LlamaServer(options.gguf).running())
        options.server_url = server.url
        environ = {"AIOS_LLM_WORKERS": "0", KEY_VARIABLE: key}
        kernel = Kernel(folder, environ)
        names = add_cores(kernel, options, endpoint)
        url = stack.enter_context(kernel.up(names))
        say(kernel.aios("cores", "list"))
        endpoint.faults.extend(faults(options, names, chance))
        endpoint.prompt_tokens = endpoint.output_tokens = 0  # without what its start asked
        load, begun_s = Load(), time.monotonic()
        asyncio.run(load.run(url, names, options.syscalls, options.seed))
        took_s = time.monotonic() - begun_s
        ledger = read_ledger(kernel)
        say(kernel.aios("usage", "--by", "core", "--hours", "24"))
        wrong = [*check(load, ledger, names), *check_hosted(load, endpoint)]
    results = {
        "cores": names,
        "syscalls": sum(load.asked.values()),
        "answers": {name: len(load.answers[name]) for name in names},
        "ledger": ledger,
        "seconds": round(took_s, 1),
        "faults_left": len(endpoint.faults),
        "wrong": wrong,
    }
    say(json.dumps(results, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def faults(
    options: argparse.Namespace, names: Sequence[str], chance: random.Random
) -> Iterator[Fault]:
    """Yield what happens to the hosted core's requests; most are well."""
    for _ in range(options.syscalls // len(names) // FAULT_EACH):
        yield chance.choice(FAULTS)


def say(text: str) -> None:
    """Print it at once."""
    print(text, flush=True)


def main() -> int:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True, help="a model file")
    parser.add_argument("--syscalls", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sglang-url", help="of a server that runs, up to /v1")
    parser.add_argument("--sglang-model", default="default", help="its model's name there")
    parser.add_argument("--hosted-rpm", type=int, default=600, help="the hosted account's limit")
    parser.add_argument("--json", type=Path, help="where the results are written")
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
