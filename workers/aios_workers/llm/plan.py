"""What is to be generated, checked and complete: one answer, several, or a beam search."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import msgspec

from aios_broker.contract.llm import LlmChat
from aios_broker.contract.snapshot import (
    AnswersSnapshot,
    AnswerState,
    BeamSnapshot,
    Snapshot,
    TokenSnapshot,
)
from aios_workers.llm.core import GenerationRequest
from aios_workers.llm.tools import Toolbox

MAX_CORE_FAILURES = 2  # survived within one attempt; the next one ends the syscall
_SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class Plan:
    """One chat."""

    syscall_id: str
    request: GenerationRequest  # of the first answer, from its beginning
    n: int = 1
    beam_width: int | None = None
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stream: bool = False
    return_ids: bool = False
    toolbox: Toolbox | None = None
    snapshot: Snapshot | None = None  # to go on from; it fits (see `fits`)

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
        match self.snapshot:
            case AnswersSnapshot(answers=answers):
                return answers
            case TokenSnapshot(output_ids=ids):
                return (AnswerState(ids),)
            case _:
                return (AnswerState(()),) * self.n

    @property
    def emitted_characters(self) -> int:
        """How much of the first answer was streamed in earlier slices."""
        if self.snapshot is None or isinstance(self.snapshot, BeamSnapshot):
            return 0
        return self.snapshot.emitted_characters


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
        case TokenSnapshot():
            return (body.n, body.beam_width, body.logprobs) == (1, None, None)
        case AnswersSnapshot(answers=answers):
            if body.beam_width is not None or len(answers) != body.n:
                return False
            return body.logprobs is None or all(
                len(each.scores) == len(each.output_ids) for each in answers
            )
