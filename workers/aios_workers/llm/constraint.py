"""Holds an answer to a form: which of a core's own tokens may come next.

llguidance compiles JSON schemas, regular expressions and Lark grammars, and walks them byte by
byte, so that the same constraint allows the same texts on every core of this process tree. A
matcher is a function of the constraint and the output so far: it is built anew wherever a
generation goes on.

Some grammars overflow the compiler's stack, others keep it busy for minutes; neither may happen
to a worker or to a core. So what comes from outside is compiled once in a child with little of
everything (`ConstraintChecker`), which may die of it, and only what it survives is compiled where
it is used. What was found is remembered.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance._tokenizer import TokenizerWrapper
from numpy.typing import NDArray

from aios_broker.bounded_work import BoundedWork
from aios_broker.contract.errors import CoreError, InvalidSyscall
from aios_broker.places import Holder, Shares
from aios_broker.process.bounded import Bounds, OutOfBounds, OutOfTime, serve
from aios_workers.llm.core import Constraint

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

FIELDS = {
    "json": "body.format.json_schema",
    "regex": "body.format.pattern",
    "grammar": "body.format.grammar",
}
MAX_SYMBOLS = 20_000  # of a compiled grammar; with 100,000 a mask takes 0.6 s
MAX_LEXER_STATES = 50_000  # 1 to 2 kB each
MAX_REASON_CHARACTERS = 400
# Written as Python's json.dumps does: small models, let free, fill an answer with blanks.
JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}

Tokenize = Callable[[bytes], Sequence[int]]


class Compiler:
    """Makes matchers over one vocabulary. Building it for 49,152 tokens takes about 0.2 s."""

    def __init__(self, pieces: Sequence[bytes], ends: Collection[int], tokenize: Tokenize) -> None:
        """`pieces` are the bytes of all tokens; one without bytes is never part of a text."""
        self.size = len(pieces)
        source = _Tokenizer(pieces, sorted(ends), tokenize)
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(source), n_vocab=self.size, eos_token=source.ends
        )

    def start(self, constraint: Constraint, output_ids: Iterable[int] = ()) -> Matcher:
        """Return a matcher that has read the output so far.

        Raises:
            InvalidSyscall: it cannot be compiled.
            CoreError: the output does not follow the constraint.
        """
        limits = LLParserLimits(
            max_grammar_size=MAX_SYMBOLS, max_lexer_states=MAX_LEXER_STATES, verbose_errors=False
        )
        try:
            source = _grammar_of(constraint)
        except ValueError as error:
            raise refusal(constraint, not_kept(constraint, str(error))) from error
        inner = LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
        if inner.is_error():
            raise refusal(constraint, not_kept(constraint, inner.get_error()))
        matcher = Matcher(constraint, inner, self.size)
        for token in output_ids:
            matcher.add(token)
        return matcher


class Matcher:
    """Where one output stands in its form."""

    def __init__(self, constraint: Constraint, inner: LLMatcher, size: int) -> None:
        self._constraint = constraint
        self._inner = inner
        self._size = size

    @property
    def must_end(self) -> bool:
        """Whether the text is complete and nothing can be added to it."""
        return self._inner.is_stopped() and not self._inner.is_error()

    @property
    def may_end(self) -> bool:
        """Whether the text is complete as it is."""
        return self._inner.is_accepting() and not self._inner.is_error()

    def allowed(self) -> NDArray[np.bool_]:
        """Return for every token whether it may come next: about 0.15 ms for 49,152.

        End tokens may where the text may end.

        Raises:
            InvalidSyscall: there is none, or finding out costs more than is allowed.
        """
        bits = np.frombuffer(self._inner.compute_bitmask(), dtype=np.uint8)
        if self._inner.is_error():
            raise refusal(self._constraint, not_kept(self._constraint, _reason_of(self._inner)))
        return np.unpackbits(bits, count=self._size, bitorder="little").astype(np.bool_)

    def add(self, token: int) -> None:
        """Read an output token.

        Raises:
            CoreError: it was not allowed.
            InvalidSyscall: going on costs more than is allowed.
        """
        if not self._inner.consume_token(token):
            reason = self._inner.get_error()
            if "doesn't satisfy" not in reason:
                raise refusal(self._constraint, not_kept(self._constraint, reason))
            raise CoreError(f"token {token} does not follow the constraint of its generation")


def not_kept(constraint: Constraint, reason: str) -> str:
    """Return the message that a constraint cannot be kept."""
    names = {"json": "the JSON schema", "regex": "the pattern", "grammar": "the grammar"}
    text = " ".join(reason.replace("<non-verbose/>", "").split())[:MAX_REASON_CHARACTERS]
    return f"{names[constraint.kind]} cannot be kept: {text}"


def refusal(constraint: Constraint, message: str) -> InvalidSyscall:
    """Return the error of a constraint that cannot be kept."""
    return InvalidSyscall(
        message, field=FIELDS[constraint.kind], remedy="correct it, or simplify it"
    )


def _reason_of(inner: LLMatcher) -> str:
    reason = inner.get_error()
    return "no text satisfies it" if reason.startswith("NoExtension") else reason


def _grammar_of(constraint: Constraint) -> str:
    match constraint.kind:
        case "json":
            # `lenient` would leave out keywords that it does not know: then it would not hold.
            return LLMatcher.grammar_from_json_schema(
                constraint.source, defaults=JSON_STYLE, overrides={"lenient": False}
            )
        case "regex":
            return LLMatcher.grammar_from_regex(constraint.source)
        case "grammar":
            return LLMatcher.grammar_from_lark(constraint.source)


class _Tokenizer:
    """What llguidance wants to know of a vocabulary, by the names that it looks for."""

    def __init__(self, pieces: Sequence[bytes], ends: list[int], tokenize: Tokenize) -> None:
        self.tokens = pieces
        self.ends = ends
        self.special_token_ids = [token for token, piece in enumerate(pieces) if not piece]
        self.eos_token_id = ends[0]
        self.bos_token_id = None
        self._tokenize = tokenize

    def __call__(self, data: bytes) -> list[int]:
        return list(self._tokenize(data))


PROGRAM = "aios_workers.llm.constraint"
MOST_COMPILE_S = 0.2  # of one CPU: so long a core may stand still when it compiles it again
# A generation's slot waits for it: what would be refused in the end is not gone on with.
BOUNDS = Bounds(cpu_s=1.5 * MOST_COMPILE_S, memory_bytes=1 << 30, wall_s=20.0, nice=5)
AT_ONCE = Shares(places=2, of_tenant=1, of_agent=1)  # of one worker process
STACK_BYTES = 2 << 20  # cores have four times as much: what fits here fits there
REMEMBERED = 256
FORCED_BYTES = 8  # read where there is no choice: what cannot go on is found out here
_BYTES = 256


class ConstraintChecker:
    """Checks constraints, of each tenant one at a time; the latest verdicts are remembered."""

    def __init__(self) -> None:
        self._verdicts: dict[Constraint, str] = {}  # the longest unused first
        self._work = BoundedWork(PROGRAM, BOUNDS, AT_ONCE)
        self.children = 0  # that were started

    async def check(self, constraint: Constraint, holder: Holder) -> None:
        """Return if a core can keep it.

        Raises:
            InvalidSyscall: it is wrong, unsupported, too large, or satisfied by no text.
            CoreError, ModuleError: it could not be found out.
        """
        verdict = self._verdicts.pop(constraint, None)
        if verdict is None:
            self.children += 1
            verdict = await self._verdict(constraint, holder)
        self._verdicts[constraint] = verdict  # the last to be forgotten
        if len(self._verdicts) > REMEMBERED:
            del self._verdicts[next(iter(self._verdicts))]
        if verdict:
            raise refusal(constraint, verdict)

    async def _verdict(self, constraint: Constraint, holder: Holder) -> str:
        """Return the message of why a constraint cannot be kept; empty: it can."""
        try:
            said = await self._work.run(holder, msgspec.json.encode(constraint))
        except OutOfTime as error:
            late = f"a constraint could not be checked within {BOUNDS.wall_s:g} s"
            raise CoreError(late) from error
        except OutOfBounds:
            return not_kept(constraint, "it is too large, too deep or too ambiguous to be compiled")
        return said.decode("utf-8", "replace")


def _work(request: bytes) -> bytes:
    """Compile a constraint, and return what is wrong with it."""
    constraint = msgspec.json.decode(request, type=Constraint)
    threading.stack_size(STACK_BYTES)
    verdicts: list[str] = []
    thread = threading.Thread(target=lambda: verdicts.append(_compile(constraint)))
    began_s = time.process_time()
    thread.start()
    thread.join()
    took_s = time.process_time() - began_s
    verdict = verdicts[0]
    if took_s > MOST_COMPILE_S and not verdict:
        why = f"it takes {took_s:.1f} s to compile, the limit is {MOST_COMPILE_S:g} s"
        verdict = not_kept(constraint, why)
    return verdict.encode()


def _compile(constraint: Constraint) -> str:
    """Compile for a vocabulary of single bytes; read what every text of it begins with."""
    compiler = Compiler([*(bytes([byte]) for byte in range(_BYTES)), b""], (_BYTES,), list)
    try:
        matcher = compiler.start(constraint)
        for _ in range(FORCED_BYTES):
            allowed = matcher.allowed().nonzero()[0]
            if len(allowed) != 1 or allowed[0] == _BYTES:
                break
            matcher.add(int(allowed[0]))
    except InvalidSyscall as error:
        return error.message
    return ""


if __name__ == "__main__":
    sys.exit(serve(_work))
