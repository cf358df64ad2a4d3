"""`aios cores check`: one real prompt to a core, and what came of it."""

import asyncio

import click
from msgspec import Struct, field

from aios_broker.client.pending import REPLY_GRACE_S
from aios_broker.contract.errors import KernelError, from_wire
from aios_broker.contract.money import shown
from aios_broker.contract.reply import ChatResult, EmbedResult, Reply
from aios_broker.contract.syscall import new_id
from aios_broker.queues.records import CoreView
from aios_broker.views.words import plural, seconds
from aios_cli.call import Fields, ask, checked
from aios_cli.core_views import core_lines, fleet_of
from aios_cli.session import Operator, command, current_config, with_kernel
from aios_cli.tables import first_words, say

PROMPT = "Name three rivers of France."
AGENT = "aios-cores-check"
MAX_TOKENS = 48
START_POLL_S = 0.3
ANSWER_CHARACTERS = 200  # that are shown


class CoreCheck(Struct, frozen=True, kw_only=True):
    """What a core did when it was asked."""

    name: str
    ok: bool
    why: str = ""  # it did not answer
    model: str = ""
    answered_by: str = ""  # another core, where it has failed and has a fallback
    answer: str = ""
    report: dict[str, str] = field(default_factory=dict)  # what its worker says of it
    context_tokens: int = 0
    slots: int = 0  # of one worker
    prompt_tokens: int = 0
    output_tokens: int = 0
    tokens_per_s: float = 0.0  # of this answer alone, with its prompt
    cost: str = ""
    waited_s: float = 0.0
    ran_s: float = 0.0


def _show(found: CoreCheck) -> None:
    if not found.ok:
        say(f"core {found.name} does not answer: {found.why}", err=True)
    if found.model:
        say(f"{'model':<16} {found.model}")
        holds = plural(found.context_tokens, "token")
        say(f"{'context':<16} {holds}, {plural(found.slots, 'slot')}")
    for name, value in found.report.items():
        say(f"{name:<16} {value}")
    if found.ok:
        say(f"{'answer':<16} {first_words(found.answer, ANSWER_CHARACTERS)}")
        say(
            f"{'speed':<16} {found.tokens_per_s:.1f} tokens/s: "
            f"{plural(found.output_tokens, 'token')} in {seconds(found.ran_s)}, "
            f"after {seconds(found.waited_s)} of waiting"
        )
    if found.cost:
        say(f"{'cost':<16} {found.cost}")


@command(_show, failed=lambda found: not found.ok)
@click.argument("name")
@click.option(
    "--timeout-s", type=click.FloatRange(min=0.1), default=120.0, help="No answer by then: 120."
)
def check(name: str, timeout_s: float) -> CoreCheck:
    """Send one prompt through the running kernel to a core; say what it is and how fast.

    Where its worker is still loading it is waited for. Exit code 1: it does not answer.
    """
    return with_kernel(lambda operator: _check(operator, name, timeout_s))


async def _check(operator: Operator, name: str, timeout_s: float) -> CoreCheck:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + timeout_s
    while (view := await _served(operator, name)) is None:
        why = await _why_away(operator, name)
        if why is not None or loop.time() >= until_s:
            return CoreCheck(name=name, ok=False, why=why or f"not within {timeout_s:g} s")
        await asyncio.sleep(START_POLL_S)
    left_s = max(1.0, until_s - loop.time())
    syscall = checked(
        {"id": new_id(), "agent": AGENT, "deadline_s": left_s, "body": _body(name, view)}
    )
    try:
        syscall = await operator.identified(syscall)
        reply = await ask(operator, syscall, lambda one: one.reply_within(left_s + REPLY_GRACE_S))
    except KernelError as error:
        return _told(view, None, str(error))
    if reply.error is not None:
        return _told(view, None, str(from_wire(reply.error)))
    return _told(view, reply, "")


async def _served(operator: Operator, name: str) -> CoreView | None:
    found = {view.card.name: view for view in await operator.control.cores()}
    view = found.get(name)
    return view if view is not None and view.slots else None


async def _why_away(operator: Operator, name: str) -> str | None:
    """Return why no worker serves a core; None: one may come."""
    lines = core_lines(current_config(), await fleet_of(operator))
    line = next((line for line in lines if line.name == name), None)
    if line is None:
        return "there is no such core: `aios cores list` shows those that are known"
    if line.state in {"fails", "wrong"}:
        return line.problem
    if line.workers == 0:
        return "it has no workers here"
    return None


def _body(name: str, view: CoreView) -> Fields:
    if not view.card.generates:
        return {"type": "llm.embed", "texts": [PROMPT], "core": name}
    return {
        "type": "llm.chat",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": MAX_TOKENS,
        "core": name,
    }


def _told(view: CoreView, reply: Reply | None, why: str) -> CoreCheck:
    card = view.card
    result = reply.result if reply is not None else None
    usage = result.usage if isinstance(result, ChatResult | EmbedResult) else None
    by = result.core if isinstance(result, ChatResult | EmbedResult) else ""
    if by not in {"", card.name}:
        why = f"it failed, and {by} answered in its place"
    timings = reply.timings if reply is not None else None
    ran_s = timings.ran_s if timings is not None else 0.0
    output = usage.output_tokens if usage is not None else 0
    return CoreCheck(
        name=card.name,
        ok=not why,
        why=why,
        model=card.model,
        answered_by=by,
        answer=_answer(result),
        report=dict(card.report),
        context_tokens=card.context_tokens,
        slots=card.slots,
        prompt_tokens=usage.prompt_tokens if usage is not None else 0,
        output_tokens=output,
        tokens_per_s=output / ran_s if ran_s > 0 else 0.0,
        cost=shown(usage.cost_nano, usage.currency) if usage and usage.cost_nano else "",
        waited_s=timings.queued_s if timings is not None else 0.0,
        ran_s=ran_s,
    )


def _answer(result: object) -> str:
    match result:
        case ChatResult(text=text):
            return text
        case EmbedResult(vectors=(vector, *_)):
            return f"a vector of {len(vector)} numbers"
        case _:
            return ""
