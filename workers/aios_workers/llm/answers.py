"""One chat's answers: what is to be generated, and how its caller sees what was. Pure.

Log-probabilities are kept as whole millionths of a nat, from the moment they come: sums are exact,
and an answer that was suspended has the same ones as one that was not. Text is fed one token at a
time, in order: what a stop string matches never depends on how tokens arrived in steps or slices.
"""

import codecs
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import msgspec

from aios_broker.contract.llm import (
    Format,
    GrammarFormat,
    JsonFormat,
    LlmChat,
    RegexFormat,
    ToolCall,
)
from aios_broker.contract.reply import (
    Alternative,
    ChatResult,
    Choice,
    FinishReason,
    TokenLogprob,
    Usage,
)
from aios_broker.contract.snapshot import (
    AnswersSnapshot,
    AnswerState,
    BeamSnapshot,
    EndReason,
    Snapshot,
    TokenScore,
)
from aios_workers.llm.chat.reasoning import ReasoningReader, ReasoningTags, is_open
from aios_workers.llm.core import Constraint, Core, CoreInfo, GenerationRequest, ScoredToken
from aios_workers.llm.tools import Toolbox, constraint_of, read_calls

MILLION = 1_000_000
_LEAST = -(2**31)  # less is kept as this, minus infinity too: about e ** -2147
_MOST = 2**31 - 1
_SEEDS = 2**63

Decode = Callable[[Sequence[int]], bytes]


PROMPT_END_TOKENS = 32  # among which a prompt may open a reasoning


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What a model may write before its answer, and whether its prompt has begun it."""

    tags: ReasoningTags
    opened: bool


def reasoning_of(core: Core, body: LlmChat, prompt_ids: Sequence[int]) -> Reasoning | None:
    """Return what may come before an answer; None: its model does not think, or must not here."""
    tags = core.info.capabilities.reasoning
    if core.info.capabilities.text_ids:  # its endpoint tells them apart, whatever the answer is
        return None if tags is None else Reasoning(tags, opened=False)
    if tags is None or begins_at_once(body):
        return None
    end = core.decode(prompt_ids[-PROMPT_END_TOKENS:]).decode("utf-8", "replace")
    return Reasoning(tags, is_open(end, tags))


def begins_at_once(body: LlmChat) -> bool:
    """Whether an answer has a form from its first token on: there is no reasoning before it."""
    return body.format is not None or (bool(body.tools) and body.tool_choice not in _MAY_SAY)


_MAY_SAY = ("auto", "none")


def closed(core: Core, body: LlmChat, prompt_ids: Sequence[int]) -> tuple[int, ...]:
    """Return a prompt in which no reasoning is open where the answer has to begin at once."""
    tags = core.info.capabilities.reasoning
    if tags is None or core.info.capabilities.text_ids or not begins_at_once(body):
        return tuple(prompt_ids)
    end = core.decode(prompt_ids[-PROMPT_END_TOKENS:]).decode("utf-8", "replace")
    return (*prompt_ids, *(tags.closing_ids if is_open(end, tags) else ()))


@dataclass(frozen=True, slots=True)
class Plan:
    """What one chat is to generate, checked and complete."""

    syscall_id: str
    body: LlmChat
    request: GenerationRequest  # of the first answer, from its beginning
    stream: bool  # somebody reads along
    toolbox: Toolbox | None
    snapshot: Snapshot | None  # to go on from; it fits (see `fits`)
    reasoning: Reasoning | None = None  # that may come before the answers

    def answer_request(self, number: int) -> GenerationRequest:
        """Return the request of one of the answers, from its beginning."""
        sampling = self.request.sampling
        return replace(
            self.request,
            request_id=answer_id(self.syscall_id, number),
            sampling=msgspec.structs.replace(sampling, seed=(sampling.seed + number) % _SEEDS),
        )

    def answer_states(self) -> tuple[AnswerState, ...]:
        """Return where each answer goes on."""
        if isinstance(self.snapshot, AnswersSnapshot):
            return self.snapshot.answers
        return (AnswerState(()),) * self.body.n

    @property
    def emitted(self) -> tuple[int, int]:
        """How much of the first answer, and of its reasoning, was streamed in earlier slices."""
        saved = self.snapshot
        if isinstance(saved, AnswersSnapshot):
            return saved.emitted_characters, saved.emitted_reasoning
        return 0, 0

    def answer_text(self) -> "AnswerText":
        """Return the text of an answer before its first token."""
        return AnswerText(self.body.stop, self.reasoning)


def answer_id(syscall_id: str, number: int) -> str:
    """Return the request id of an answer or a beam: 32 hex digits, the first is the syscall's."""
    if number == 0:
        return syscall_id
    return hashlib.blake2b(f"{syscall_id}.{number}".encode(), digest_size=16).hexdigest()


def fits(snapshot: Snapshot, body: LlmChat) -> bool:
    """Whether a snapshot is of a generation as this chat asks for it."""
    match snapshot:
        case BeamSnapshot():
            return body.beam_width is not None
        case AnswersSnapshot(answers=answers) if body.beam_width is None:
            scored = all(len(each.scores) == len(each.output_ids) for each in answers)
            return len(answers) == body.n and (body.logprobs is None or scored)
        case _:
            return False


def constraint_of_chat(
    body: LlmChat, toolbox: Toolbox | None, info: CoreInfo, reasoning: Reasoning | None = None
) -> Constraint | None:
    """Return what the whole answer must be, as a core takes it; None: anything.

    A core that holds no constraints, or none of this kind, but whose template knows tools, is left
    to itself.
    """
    if not info.capabilities.constraints:
        return None
    if toolbox is not None and not info.capabilities.native_calls:
        tags = reasoning.tags if reasoning is not None else None
        found = constraint_of(toolbox, tags, opened=reasoning is not None and reasoning.opened)
        is_held = (
            found.kind != "grammar" or bool(found.calls) or "grammar" in info.capabilities.forms
        )
        return found if is_held else None
    if body.format is None or (toolbox is not None and toolbox.form is None):
        return None
    return _constraint_of_format(body.format)


def _constraint_of_format(wanted: Format) -> Constraint:
    match wanted:
        case JsonFormat(json_schema=schema):
            any_object = {"type": "object"}
            source = json.dumps(any_object if schema is None else schema, ensure_ascii=False)
            return Constraint("json", source)
        case RegexFormat(pattern=pattern):
            return Constraint("regex", pattern)
        case GrammarFormat(grammar=grammar):
            return Constraint("grammar", grammar)


# Log-probabilities between a core, the snapshot and the result.


def millionths(logprob: float) -> int:
    """Return a log-probability as a whole number of millionths."""
    if logprob * MILLION <= _LEAST or logprob != logprob:
        return _LEAST
    return min(_MOST, round(logprob * MILLION))


def score_of(entry: ScoredToken, *, alternatives: int) -> TokenScore:
    """Return a core's entry as it is kept, with the best alternatives alone."""
    top = entry.top[:alternatives]
    return TokenScore(
        millionths(entry.logprob),
        tuple(each.id for each in top),
        tuple(millionths(each.logprob) for each in top),
    )


def _shown(
    ids: Sequence[int], scores: Sequence[TokenScore], decode: Decode
) -> tuple[TokenLogprob, ...]:
    """Return the scores of an answer's ids as its caller sees them."""

    def text(token: int) -> str:
        return decode((token,)).decode("utf-8", "replace")

    return tuple(
        TokenLogprob(
            token,
            score.logprob / MILLION,
            text(token),
            tuple(
                Alternative(other, logprob / MILLION, text(other))
                for other, logprob in zip(score.top_ids, score.top_logprobs, strict=True)
            ),
        )
        for token, score in zip(ids, scores, strict=True)
    )


# The result.


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, at its end."""

    text: str
    finish_reason: EndReason
    ids: tuple[int, ...]
    scores: tuple[TokenScore, ...] = ()
    rank: float | None = None  # of a beam
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()  # instead of scores, where ids are no tokens
    stopped_by: str = ""


def choice_of(core: Core, plan: Plan, answer: Answer, number: int) -> Choice:
    """Return an answer as its caller sees it: its calls read, its ids only where asked for."""
    text, calls = answer.text, tuple[ToolCall, ...]()
    reason: FinishReason = answer.finish_reason
    if plan.toolbox is not None:
        text, calls = read_calls(text, plan.toolbox, syscall_id=plan.syscall_id, choice=number)
        if calls and (
            plan.toolbox.forced or reason == "stop" or _is_whole(answer.text, plan.toolbox)
        ):
            reason = "tool_calls"
    logprobs = answer.logprobs
    if plan.body.logprobs is not None and not core.info.capabilities.text_ids:
        logprobs = _shown(answer.ids, answer.scores, core.decode)
    return Choice(
        text=text,
        finish_reason=reason,
        output_ids=answer.ids if plan.body.return_ids else (),
        logprobs=logprobs,
        tool_calls=calls,
        score=answer.rank,
        reasoning=answer.reasoning,
        stopped_by=answer.stopped_by,
    )


def _is_whole(text: str, toolbox: Toolbox) -> bool:
    """Whether an answer that ran out of tokens ended with a whole call all the same."""
    end = toolbox.call_format.end or toolbox.call_format.call_end
    return bool(end) and text.endswith(end)


def chat_result(
    core: Core,
    plan: Plan,
    choices: Sequence[Choice],
    *,
    output_tokens: int,
    cached_tokens: int | None,
) -> ChatResult:
    """Return the result; the first choice is its answer."""
    first, body, prompt_ids = choices[0], plan.body, plan.request.prompt_ids
    several = body.n > 1 or body.beam_width is not None
    return ChatResult(
        text=first.text,
        finish_reason=first.finish_reason,
        model=core.info.model,
        core=core.info.name,
        usage=Usage(
            prompt_tokens=len(prompt_ids),
            output_tokens=output_tokens,
            cached_tokens=min(len(prompt_ids), cached_tokens or 0),
        ),
        prompt_ids=tuple(prompt_ids) if body.return_ids else (),
        output_ids=first.output_ids,
        logprobs=first.logprobs,
        tool_calls=first.tool_calls,
        choices=tuple(choices) if several else (),
        reasoning=first.reasoning,
        stopped_by=first.stopped_by,
    )


class AnswerText:
    """The text of one answer as it grows, and the reasoning before it.

    Ends just before the first stop string. Characters that may be the beginning of one are
    kept back from `take_ready` until it is clear whether they are. Stop strings are the answer's:
    the reasoning may contain them.
    """

    def __init__(self, stop: Sequence[str] = (), reasoning: Reasoning | None = None) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._window = max((len(each) for each in stop), default=1) - 1
        self._ready: list[str] = []  # may be streamed, not yet taken
        self._taken: list[str] = []
        self._tail = ""  # kept back: the beginning of a stop string, perhaps
        self._thoughts: list[str] = []
        self._thoughts_taken = 0  # pieces
        self._reader = (
            None if reasoning is None else ReasoningReader(reasoning.tags, opened=reasoning.opened)
        )
        self.stopped_by = ""  # the stop string that was found: the answer is complete

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return bool(self.stopped_by)

    @property
    def text(self) -> str:
        """The whole answer so far."""
        return "".join((*self._taken, *self._ready, self._tail))

    @property
    def is_thinking(self) -> bool:
        """Whether it is in the middle of its reasoning."""
        return self._reader is not None and self._reader.is_open

    @property
    def reasoning(self) -> str:
        """What came before the answer, so far."""
        return "".join(self._thoughts)

    def feed(self, piece: bytes) -> bool:
        """Append the bytes of one token; return True when the answer ends here."""
        return self._append(self._answered(self._decoder.decode(piece)))

    def finish(self) -> None:
        """The generation is over: what was kept back belongs to the answer.

        A character that was left incomplete becomes U+FFFD.
        """
        text = self._answered(self._decoder.decode(b"", final=True))
        if self._reader is not None:
            thought, rest = self._reader.finish()
            self._thoughts.append(thought)
            text += rest
        self._append(text)
        self._ready.append(self._tail)
        self._tail = ""

    def take_ready(self) -> str:
        """Return the characters, not returned before, that are certain to be in the answer."""
        ready = "".join(self._ready)
        self._taken.append(ready)
        self._ready.clear()
        return ready

    def take_reasoning(self) -> str:
        """Return what of the reasoning was not returned before."""
        new = "".join(self._thoughts[self._thoughts_taken :])
        self._thoughts_taken = len(self._thoughts)
        return new

    def _answered(self, text: str) -> str:
        """Return what of a text belongs to the answer; keep what is reasoning."""
        if self._reader is None or not text:
            return text
        thought, answer = self._reader.feed(text)
        if thought:
            self._thoughts.append(thought)
        return answer

    def _append(self, text: str) -> bool:
        if self.stopped or not text:
            return self.stopped
        tail = self._tail + text
        found = [(at, each) for each in self._stop if (at := tail.find(each)) >= 0]
        if found:
            begin, self.stopped_by = min(found, key=itemgetter(0))
            self._ready.append(tail[:begin])
            self._tail = ""
            return True
        keep = self._possible_beginning(tail)
        cut = len(tail) - keep
        self._ready.append(tail[:cut])
        self._tail = tail[cut:]
        return False

    def _possible_beginning(self, tail: str) -> int:
        """Return how many characters at the end may begin a stop string."""
        for size in range(min(self._window, len(tail)), 0, -1):
            end = tail[-size:]
            if any(each.startswith(end) for each in self._stop):
                return size
        return 0
