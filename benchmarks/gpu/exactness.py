"""Answers that are cut again and again against the uncut ones, straight from the server."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import httpx

from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.reply import ChatResult, Timings
from benchmarks.gpu.direct import Answer, Direct
from benchmarks.gpu.kernel import Kernel, Place, Rules, kernel_on
from benchmarks.gpu.results import Results, mean, quantile, say
from benchmarks.gpu.target import SGLangTarget, all_bounded, text_of, through
from benchmarks.gpu.worker import Note, OnSGLang, read_notes

SHORTEST_TOKENS = 60
PARTED_SHOWN = 20  # greedy answers that differ and are explained
MARGIN_S = 15.0

Reply = tuple[ChatResult, Timings]


@dataclass(frozen=True, slots=True)
class Cuts:
    """What is asked, and how it is cut."""

    kinds: tuple[str, ...]  # greedy, sampled
    count: int
    prompt_tokens: int
    answer_tokens: int
    quantum_tokens: int
    slots: int
    in_flight: int
    control: int
    seed: int


def bodies_of(target: SGLangTarget, cuts: Cuts) -> list[LlmChat]:
    """Return chats that follow from the seed; each answer has half of the tokens at least."""
    found = []
    for kind in cuts.kinds:
        rng = random.Random(f"{cuts.seed}/{kind}")
        for _ in range(cuts.count):
            tokens = rng.randint(SHORTEST_TOKENS, max(SHORTEST_TOKENS, cuts.prompt_tokens))
            message = Message("user", text_of(target.core, rng, tokens))
            length = rng.randint(cuts.answer_tokens // 2, cuts.answer_tokens)
            if kind == "greedy":
                found.append(LlmChat((message,), max_tokens=length, return_ids=True))
                continue
            found.append(
                LlmChat(
                    (message,),
                    max_tokens=length,
                    temperature=rng.choice((0.6, 0.9, 1.2)),
                    top_p=rng.choice((1.0, 0.95)),
                    top_k=rng.choice((0, 50)),
                    seed=rng.getrandbits(62),
                    return_ids=True,
                )
            )
    return found


async def exactness(
    target: SGLangTarget, results: Results, cuts: Cuts, second_url: str | None
) -> None:
    """Compare cut answers with uncut ones, and uncut ones with each other as the control."""
    cuts = _possible(target, results, cuts)
    bodies = bodies_of(target, cuts)
    expected = await _uncut(target, bodies, cuts.in_flight, results.left_s)
    distinct = [len(set(each.ids)) / len(each.ids) for each in expected if each and each.ids]
    results.tell("distinct_tokens_per_answer", mean(distinct))  # near 0: the weights show little
    if cuts.control:
        again = await _uncut(target, bodies, cuts.control, results.left_s)
        found = [each and each.ids for each in again]
        results.tell("control_uncut_against_uncut", _compared(cuts, expected, found))
    places = _places(target, cuts, second_url)
    await target.refresh()
    rules = Rules("rr", cuts.quantum_tokens)
    async with kernel_on(places, rules) as kernel:
        began_s = time.monotonic()
        replies = await _through_kernel(kernel, bodies, results.left_s - MARGIN_S)
        seconds = time.monotonic() - began_s
        notes = read_notes(kernel.notes)
    found = [reply and reply[0].output_ids for reply in replies]
    suspensions = [reply[1].suspensions for reply in replies if reply]
    name = "two_servers" if second_url else "one_server"
    row: dict[str, object] = {
        "by_kind": _compared(cuts, expected, found),
        "suspensions": sum(suspensions),
        "answers_cut": sum(count > 0 for count in suspensions),
        "seconds": round(seconds, 1),
        "core": resumptions(notes),
    }
    results.tell(name, row)
    results.keep(name, {**row, "parted": await _parted(target, bodies, expected, found)})


def _possible(target: SGLangTarget, results: Results, cuts: Cuts) -> Cuts:
    """Leave out the sampled ones where the server draws by no seed: the kernel refuses them."""
    if target.core.info.capabilities.exact_resume or "sampled" not in cuts.kinds:
        return cuts
    results.tell("sampled", "left out: the server is not in deterministic mode")
    kinds = tuple(kind for kind in cuts.kinds if kind != "sampled")
    return Cuts(
        **{name: getattr(cuts, name) for name in cuts.__slots__ if name != "kinds"}, kinds=kinds
    )


def _places(target: SGLangTarget, cuts: Cuts, second_url: str | None) -> Sequence[Place]:
    places = target.places(2 * cuts.slots, 2)
    if second_url is None:
        return places
    first = places[0]
    assert isinstance(first, OnSGLang)
    other = OnSGLang(
        url=second_url,
        slots=first.slots,
        context_tokens=first.context_tokens,
        tokenizer=first.tokenizer,
    )
    return [first, other]


async def _uncut(
    target: SGLangTarget, bodies: Sequence[LlmChat], in_flight: int, limit_s: float
) -> list[Answer | None]:
    await target.refresh()
    began_s = time.monotonic()
    works = [lambda body=body: target.ask(body) for body in bodies]
    answers = await through(works, in_flight, limit_s)
    tokens = sum(len(each.ids) for each in answers if each)
    say(f"uncut, {in_flight} at once: {tokens / (time.monotonic() - began_s):.0f} tokens/s")
    return answers


async def _through_kernel(
    kernel: Kernel, bodies: Sequence[LlmChat], limit_s: float
) -> list[Reply | None]:
    works = [kernel.chat(body, f"program-{number}", limit_s) for number, body in enumerate(bodies)]
    return await all_bounded(works, limit_s)


def _compared(
    cuts: Cuts, expected: Sequence[Answer | None], found: Sequence[tuple[int, ...] | None]
) -> dict[str, dict[str, int]]:
    """Return by kind how many were compared, are identical, and are missing."""
    table: dict[str, dict[str, int]] = {}
    for place, (reference, ids) in enumerate(zip(expected, found, strict=True)):
        row = table.setdefault(cuts.kinds[place // cuts.count], Counter())
        if reference is None or ids is None:
            row["missing"] += 1
            continue
        row["compared"] += 1
        row["identical"] += reference.ids == ids
    return {kind: dict(row) for kind, row in table.items()}


def resumptions(notes: Sequence[Note]) -> dict[str, object]:
    """Return how often the core was asked to go on, and what it had to read again."""
    workers: dict[str, str] = {}
    again: list[float] = []
    here = all_but_one = 0
    for note in notes:
        before, workers[note.id] = workers.get(note.id), note.worker
        if not note.resume or not note.made:
            continue
        missed = note.prompt + note.resume - note.cached
        again.append(missed)
        here += before == note.worker
        all_but_one += missed <= 1
    first_s = [note.first_s for note in notes if note.resume and note.made]
    return {
        "requests": len(notes),
        "resumptions": len(again),
        "by_the_same_worker": here,
        "all_but_one_cached": all_but_one,
        "tokens_read_again_p50": quantile(again, 0.5),
        "tokens_read_again_max": quantile(again, 1.0),
        "first_token_p50_s": quantile(first_s, 0.5),
    }


async def _parted(
    target: SGLangTarget,
    bodies: Sequence[LlmChat],
    expected: Sequence[Answer | None],
    found: Sequence[tuple[int, ...] | None],
) -> list[dict[str, object]]:
    """Return where greedy answers part, and how far apart the two tokens were."""
    rows: list[dict[str, object]] = []
    for body, reference, ids in zip(bodies, expected, found, strict=True):
        if reference is None or ids is None or reference.ids == ids or body.temperature > 0:
            continue
        if len(rows) == PARTED_SHOWN:
            break
        pairs = enumerate(zip(reference.ids, ids, strict=False))
        shorter = min(len(reference.ids), len(ids))
        at = next((place for place, (a, b) in pairs if a != b), shorter)
        row: dict[str, object] = {"parts_at": at, "of": len(reference.ids), "distance": None}
        with suppress(httpx.HTTPError):  # an explanation is not worth a run
            prompt = (*target.core.render(body.messages), *reference.ids[:at])
            row["distance"] = await _distance(
                target.direct, prompt, (*reference.ids[at : at + 1], *ids[at : at + 1])
            )
        rows.append(row)
        await asyncio.sleep(0)
    return rows


async def _distance(direct: Direct, prompt: Sequence[int], tokens: Sequence[int]) -> float | None:
    best = await direct.alternatives(prompt)
    known = [best[token] for token in tokens if token in best]
    return round(abs(known[0] - known[1]), 5) if len(known) == 2 else None
