"""Cuts answers of llama.cpp cores at random tokens and compares: resumed must equal uninterrupted.

    python -m benchmarks.exact_resume [--gguf FILE ...] [--cuts 200] [--threads 1,2] [--seed 1]

For each file two cores, each with its own count of threads: an answer goes on where it was cut, or
on the other. A quarter of the cuts each: greedy, sampled, held to a JSON schema, and held to what a
message that may call tools looks like. Without files the small model of the package. Ends with exit
code 1 where an answer differed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from aios_broker.contract.cores import LlamaSettings
from aios_broker.contract.llm import LlmChat, Message, Tool
from aios_workers.llm.core import Constraint
from aios_workers.llm.cores.llama.library import find_weights
from aios_workers.llm.cores.llama.llama_core import LlamaCppConfig, LlamaCppCore
from aios_workers.llm.tools import constraint_of, toolbox_of
from tests.exactness import FORMS, Report, check_cuts

CONTEXT_TOKENS = 1_024
TOOLS = (
    Tool(
        "find_ship",
        "Find a ship by its name.",
        {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    ),
    Tool(
        "add",
        "Add two whole numbers.",
        {
            "type": "object",
            "properties": {"left": {"type": "integer"}, "right": {"type": "integer"}},
            "required": ["left", "right"],
        },
    ),
)


def tool_calls() -> Sequence[Constraint]:
    """Return the forms of a message that must call one of the tools, and of one that may."""
    asked = (Message("user", "Find the ship."),)
    chats = [LlmChat(asked, tools=TOOLS, tool_choice=choice) for choice in ("required", "auto")]
    return [constraint_of(toolbox) for chat in chats if (toolbox := toolbox_of(chat))]


KINDS: dict[str, Sequence[Constraint]] = {
    "greedy": (),
    "sampled": (),
    "json_schema": [form for form in FORMS if form.kind == "json"],
    "tools": tool_calls(),
}


async def check(gguf: Path, threads: Sequence[int], cuts: int, seed: int) -> bool:
    """Check one file and print a row for each kind of answer; return whether all were equal."""
    cores = [
        LlamaCppCore(
            LlamaCppConfig.of(
                "model",
                LlamaSettings(gguf=str(gguf), threads=count, context_tokens=CONTEXT_TOKENS),
                kv_dir=None,
                kv_max_bytes=0,
            )
        )
        for count in (threads[0], threads[-1])
    ]
    try:
        for core in cores:
            await core.start()
        differ = 0
        for number, (kind, forms) in enumerate(KINDS.items()):
            report = await check_cuts(
                *cores, cuts=cuts // 4, seed=seed + number, greedy=kind == "greedy", forms=forms
            )
            differ += len(report.mismatches)
            print(f"{gguf.name} | {kind} | {row(report)}", flush=True)
    finally:
        for core in cores:
            await core.close()
    return differ == 0


def row(report: Report) -> str:
    """Return the counts of one kind."""
    for mismatch in report.mismatches[:3]:
        print(mismatch)
    return (
        f"{report.cuts} | {report.answers} | {report.other_core} | {report.beside_others} | "
        f"{report.answers - len(report.mismatches)} of {report.answers} | {report.wall_s:.0f}"
    )


def main() -> int:
    """Check and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, action="append")
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--threads", default="1,2", help="of the two cores")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    threads = [int(each) for each in options.threads.split(",")]
    print("file | kind | cuts | answers | on the other core | beside others | equal | s")
    equal = [
        asyncio.run(check(find_weights(path), threads, options.cuts, options.seed))
        for path in options.gguf or [None]
    ]
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
