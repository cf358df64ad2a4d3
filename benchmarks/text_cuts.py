"""Cuts answers that come over HTTP, and lets each go on from its text: is every seam whole?

    python -m benchmarks.text_cuts [--gguf FILE ...] [--cuts 200] [--tokens 48] [--seed 1]

For each file two of llama.cpp's own servers, behind remote cores that find out by themselves how
these go on. An answer is cut at random tokens, a few times, and goes on on the other server, beside
another answer half of the time. Counted are the answers whose text equals the uninterrupted one,
and the seams that are broken: a server reads the text so far anew, token by token, and is asked by
its native interface what comes next; where the core's answer went on otherwise, a word was doubled,
a space lost or a character split. Where the two texts part later, the model chose another word.
Ends with exit code 1 where a seam was broken or text got lost.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from aios_broker.contract.cores import OpenAISettings
from aios_broker.contract.llm import Message
from aios_workers.llm.core import GenerationRequest, Sampling
from aios_workers.llm.cores.llama.library import find_weights
from aios_workers.llm.cores.openai.openai_core import OpenAICore
from aios_workers.llm.cores.openai.prefill import text_of
from benchmarks.provenance import ROOT, commit_of, today
from tests.llama_server import MODEL, LlamaServer

CUTS_PER_ANSWER = 4
LOOKED_AT_TOKENS = 4  # behind a seam
TOPICS = (
    "Write a story of a lighthouse keeper who counts ships.",
    "Explain why queues grow without a bound.",
    "Write a Python function that sorts a list of names, with comments.",
    "Écris une courte histoire sur un café près de la mer.",
    "List ten emoji for the weather, each with its name.",
    "Answer in Chinese: what is tea?",
    "Make a Markdown table of five rivers and their lengths.",
    "Tell a joke with a lot of punctuation!?",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, or what was made of it until it was cut."""

    text: str
    tokens: int
    is_over: bool


@dataclass(slots=True)
class Figures:
    """What was counted."""

    cuts: int = 0
    answers: int = 0
    identical: int = 0
    broken: list[str] = field(default_factory=list)
    inside_words: int = 0  # seams between two letters or digits
    replaced: int = 0  # answers with a character that is none, and the uninterrupted one has none
    tokenised_apart: int = 0  # seams that are no border between tokens of the whole text, read anew

    def row(self) -> str:
        """Return it as a row of the table."""
        share = 100 * self.identical / max(1, self.answers)
        return (
            f"{self.cuts} | {self.answers} | {self.identical} ({share:.1f} %) | "
            f"{len(self.broken)} | {self.replaced} | {self.inside_words} | {self.tokenised_apart}"
        )


class Reference:
    """A server's native interface: it reads a text anew, and says what comes next."""

    def __init__(self, server: LlamaServer, http: httpx.AsyncClient) -> None:
        self._root = server.root
        self._http = http

    async def prompt(self, question: str) -> str:
        """Return a conversation as the model sees it."""
        messages = [{"role": "user", "content": question}]
        return str((await self._post("apply-template", {"messages": messages}))["prompt"])

    async def tokens(self, text: str) -> list[int]:
        """Tokenise a text."""
        found = (await self._post("tokenize", {"content": text}))["tokens"]
        assert isinstance(found, list)
        return found

    async def next_text(self, prompt: str, begun: str) -> str:
        """Return what comes behind a beginning whose tokens are read anew; empty: the end."""
        ids = [*await self.tokens(prompt), *await self.tokens(begun)]
        body = {"prompt": ids, "n_predict": LOOKED_AT_TOKENS, "temperature": 0.0}
        text = str((await self._post("completion", body))["content"])
        return text.rstrip("\ufffd")  # the last token may be a part of a character

    async def _post(self, path: str, body: dict[str, object]) -> dict[str, object]:
        # A connection for each: a server may close one that is kept when it is used again.
        answer = await self._http.post(
            f"{self._root}/{path}", json=body, headers={"Connection": "close"}
        )
        answer.raise_for_status()
        found = answer.json()
        assert isinstance(found, dict)
        return found


async def ask(
    core: OpenAICore, question: str, begun: Answer, max_tokens: int, cut_at: int | None = None
) -> Answer:
    """Let a core answer, or go on; abort it when it has so many tokens in all."""
    request = GenerationRequest(
        uuid.uuid4().hex,
        core.render((Message("user", question),)),
        max_tokens,
        Sampling(),
        resume_ids=tuple(map(ord, begun.text)),
        resume_tokens=begun.tokens,
    )
    text, tokens, is_over = begun.text, begun.tokens, False
    async for step in core.generate(request):
        text, tokens = text + text_of(step.ids), tokens + step.token_count
        is_over = step.finish_reason is not None
        if cut_at is not None and tokens >= cut_at and not is_over:
            await core.abort(request.request_id, keep=True)
    return Answer(text, tokens, is_over)


async def cut_one(
    cores: Sequence[OpenAICore],
    reference: Reference,
    question: str,
    options: argparse.Namespace,
    rng: random.Random,
    figures: Figures,
) -> None:
    """Cut one answer a few times, and compare."""
    nothing, most = Answer("", 0, is_over=False), options.tokens
    whole = await ask(cores[0], question, nothing, most)
    if whole.tokens < 3:
        return
    prompt = await reference.prompt(question)
    places = range(1, whole.tokens - 1)
    cuts = sorted(rng.sample(places, min(CUTS_PER_ANSWER, len(places))))
    answer, seams = nothing, list[int]()
    for number, cut_at in enumerate([*cuts, None]):
        core = cores[number % 2]
        after = await ask(core, question, answer, most, cut_at)
        if answer.text:
            seams.append(len(answer.text))
            # With fewer tokens left a character of several may not come at all.
            must_come = most - answer.tokens >= LOOKED_AT_TOKENS
            await look(reference, prompt, answer.text, after, figures, must_come=must_come)
        answer = after
        if after.is_over:
            break
    figures.answers += 1
    figures.cuts += len(seams)
    figures.identical += answer.text == whole.text
    figures.replaced += "\ufffd" in answer.text and "\ufffd" not in whole.text
    figures.tokenised_apart += await apart(reference, answer.text, seams)


async def look(
    reference: Reference,
    prompt: str,
    begun: str,
    after: Answer,
    figures: Figures,
    *,
    must_come: bool,
) -> None:
    """Compare what came behind a seam with what the model says there, from tokens read anew."""
    if not after.text.startswith(begun):
        figures.broken.append(f"lost: {begun[-20:]!r}")
        return
    came, expected = after.text[len(begun) :], await reference.next_text(prompt, begun)
    figures.inside_words += begun[-1:].isalnum() and came[:1].isalnum()
    length = min(len(came), len(expected))
    if came[:length] != expected[:length] or (
        must_come and not came and expected and after.is_over
    ):
        figures.broken.append(f"{begun[-20:]!r} + {came[:20]!r}, not {expected!r}")


async def apart(reference: Reference, text: str, seams: Sequence[int]) -> int:
    """Return how many seams fall into a token of the whole text."""
    ids = await reference.tokens(text)
    count = 0
    for seam in seams:
        begun = await reference.tokens(text[:seam])
        count += ids[: len(begun)] != begun
    return count


async def measure(gguf: Path, options: argparse.Namespace) -> Figures:
    """Run both servers and cut until there were so many cuts."""
    figures, rng = Figures(), random.Random(options.seed)
    servers = [LlamaServer(gguf, slots=2), LlamaServer(gguf, slots=2)]
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server.running())
        cores = [
            OpenAICore(f"served-{number}", OpenAISettings(url=each.url, model=MODEL), None)
            for number, each in enumerate(servers)
        ]
        async with httpx.AsyncClient(timeout=120.0) as http:
            reference = Reference(servers[1], http)
            try:
                for core in cores:
                    await core.start()
                    if not core.info.capabilities.preemptible:
                        raise SystemExit(f"{gguf.name}: its server does not go on with a text")
                await _cut_all(cores, reference, options, rng, figures)
            finally:
                for core in cores:
                    await core.close()
    return figures


async def _cut_all(
    cores: Sequence[OpenAICore],
    reference: Reference,
    options: argparse.Namespace,
    rng: random.Random,
    figures: Figures,
) -> None:
    number = 0
    while figures.cuts < options.cuts:
        pair = 1 + number % 2  # alone, or two side by side
        questions = [
            f"{number + more}. {TOPICS[(number + more) % len(TOPICS)]}" for more in range(pair)
        ]
        async with asyncio.TaskGroup() as group:
            for question in questions:
                group.create_task(cut_one(cores, reference, question, options, rng, figures))
        number += pair


async def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, nargs="*", help="without: the package's small model")
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"{today()}, commit {commit_of(ROOT)}, greedy, answers of {options.tokens} tokens")
    print(
        "file | cuts | answers | identical | broken seams | U+FFFD | within words | within tokens"
    )
    is_whole = True
    for gguf in options.gguf or [None]:
        path = find_weights(gguf)
        figures = await measure(path, options)
        print(f"{path.name} | {figures.row()}", flush=True)
        kinds = Counter(figures.broken)
        for what, count in kinds.items():
            print(f"  {count} x {what}")
        is_whole = is_whole and not figures.broken and not figures.replaced
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
