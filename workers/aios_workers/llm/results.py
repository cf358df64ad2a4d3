"""From what a core has made to what the caller gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aios_broker.contract.llm import ToolCall
from aios_broker.contract.reply import ChatResult, Choice, FinishReason, Usage
from aios_broker.contract.snapshot import EndReason, TokenScore
from aios_workers.llm.core import Core
from aios_workers.llm.plan import Plan
from aios_workers.llm.scores import shown
from aios_workers.llm.tools import CALL_END, read_calls


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, at its end."""

    text: str
    finish_reason: EndReason
    ids: tuple[int, ...]
    scores: tuple[TokenScore, ...] = ()
    rank: float | None = None  # of a beam


def choice_of(core: Core, plan: Plan, answer: Answer, number: int) -> Choice:
    """Return an answer as its caller sees it: its calls read, its ids only where asked for."""
    text, calls = answer.text, tuple[ToolCall, ...]()
    reason: FinishReason = answer.finish_reason
    if plan.toolbox is not None:
        text, calls = read_calls(text, plan.toolbox, syscall_id=plan.syscall_id, choice=number)
        if calls and (plan.toolbox.forced or reason == "stop" or answer.text.endswith(CALL_END)):
            reason = "tool_calls"
    return Choice(
        text=text,
        finish_reason=reason,
        output_ids=answer.ids if plan.return_ids else (),
        logprobs=shown(answer.ids, answer.scores, core.decode)
        if plan.request.logprobs is not None
        else (),
        tool_calls=calls,
        score=answer.rank,
    )


def chat_result(core: Core, plan: Plan, choices: Sequence[Choice], usage: Usage) -> ChatResult:
    """Return the result; the first choice is its answer."""
    first = choices[0]
    several = plan.n > 1 or plan.beam_width is not None
    return ChatResult(
        text=first.text,
        finish_reason=first.finish_reason,
        model=core.info.model,
        usage=usage,
        prompt_ids=tuple(plan.request.prompt_ids) if plan.return_ids else (),
        output_ids=first.output_ids,
        logprobs=first.logprobs,
        tool_calls=first.tool_calls,
        choices=tuple(choices) if several else (),
    )
