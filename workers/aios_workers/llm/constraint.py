"""Holds an answer to a form: which of a core's own tokens may come next.

llguidance compiles JSON schemas, regular expressions and Lark grammars, and walks them byte by
byte, so that the same constraint allows the same texts on every core of this process tree. A
matcher is a function of the constraint and the output so far: it is built anew wherever a
generation goes on.

Some grammars overflow the compiler's stack, others keep it busy for minutes; neither may happen
to a worker or to a core. So what comes from outside is compiled once in a child with little of
everything (`ConstraintChecker`), which may die of it, and only what it survives is compiled where
it is used: in a thread (`Compiler.begin`), since the engine works without Python's lock and other
answers go on meanwhile. What was found, and what was compiled last, is remembered.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
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
from aios_workers.llm.schemas import Schema, narrowed, subschemas, unkept
from aios_workers.llm.validation import number_probes, overlapping, validator_of, wrong_value
from aios_workers.llm.verdicts import Verdicts

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

FEW_TOKENS = 256  # are read in a millisecond
COMPILED = 32  # of one vocabulary that are kept as they were before the first token

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
        # Those that no token was read by, the oldest first.
        self._compiled: dict[tuple[Constraint, bool], LLMatcher] = {}

    async def begin(
        self, constraint: Constraint, output_ids: Sequence[int] = (), *, narrow: bool = True
    ) -> Matcher:
        """Return what `start` does, and let the loop go on while it is made."""
        if (constraint, narrow) in self._compiled and len(output_ids) <= FEW_TOKENS:
            return self.start(constraint, output_ids, narrow=narrow)
        return await asyncio.to_thread(self.start, constraint, output_ids, narrow=narrow)

    def start(
        self, constraint: Constraint, output_ids: Iterable[int] = (), *, narrow: bool = True
    ) -> Matcher:
        """Return a matcher that has read the output so far. In any thread.

        `narrow`: schemas are held as they can be (`schemas.narrowed`); not so for a text that a
        server made which was not asked to.

        Raises:
            InvalidSyscall: it cannot be compiled.
            CoreError: the output does not follow the constraint.
        """
        inner = self._compiled.get((constraint, narrow))
        if inner is None:
            inner = self._compiled[constraint, narrow] = self._compile(constraint, narrow=narrow)
            while len(self._compiled) > COMPILED:
                self._compiled.pop(next(iter(self._compiled)), None)  # another thread may have
        matcher = Matcher(constraint, inner.deep_copy(), self.size)
        for token in output_ids:
            matcher.add(token)
        return matcher

    def _compile(self, constraint: Constraint, *, narrow: bool) -> LLMatcher:
        limits = LLParserLimits(
            max_grammar_size=MAX_SYMBOLS, max_lexer_states=MAX_LEXER_STATES, verbose_errors=False
        )
        try:
            source = _grammar_of(narrowed_constraint(constraint) if narrow else constraint)
        except ValueError as error:
            raise refusal(constraint, not_kept(constraint, str(error))) from error
        inner = LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
        if inner.is_error():
            raise refusal(constraint, not_kept(constraint, inner.get_error()))
        return inner


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
    if "Too many items" in text and constraint.kind == "json":
        text = "it is too ambiguous, or refers to itself ($ref) without end"
    begins = {"regex": "pattern: ", "Resource": "$ref: "} if constraint.kind == "json" else {}
    keyword = next((name for begin, name in begins.items() if text.startswith(begin)), "")
    return f"{names[constraint.kind]} cannot be kept: {keyword}{text}"


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


_SCHEMA_LINE = re.compile(r"^([A-Za-z0-9_]+: %json )(.*)$", re.MULTILINE)


def narrowed_constraint(constraint: Constraint) -> Constraint:
    """Return a constraint with its schemas as the engine keeps them."""
    if constraint.kind == "json":
        return replace(constraint, source=_narrowed_text(constraint.source))
    if constraint.kind == "grammar":
        source = _SCHEMA_LINE.sub(lambda line: line[1] + _narrowed_text(line[2]), constraint.source)
        return replace(constraint, source=source)
    return constraint


def _narrowed_text(schema: str) -> str:
    try:
        return json.dumps(narrowed(json.loads(schema)), ensure_ascii=False)
    except (ValueError, RecursionError):
        return schema  # the engine says what is wrong with it


def schemas_of(constraint: Constraint) -> list[object]:
    """Return the JSON schemas of a constraint."""
    texts = [constraint.source] if constraint.kind == "json" else []
    if constraint.kind == "grammar":
        texts = [line[2] for line in _SCHEMA_LINE.finditer(constraint.source)]
    try:
        return [json.loads(each) for each in texts]
    except (ValueError, RecursionError):
        return []  # the engine says what is wrong with it


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
MOST_COMPILE_S = 0.2  # of one CPU: it is compiled once more for each core that uses it
# 16 patterns are compiled and probed in 0.12 s.
BOUNDS = Bounds(cpu_s=5 * MOST_COMPILE_S, memory_bytes=1 << 30, wall_s=20.0, nice=5)
AT_ONCE = Shares(places=2, of_tenant=1, of_agent=1)  # of one worker process
STACK_BYTES = 2 << 20  # cores have four times as much: what fits here fits there
FORCED_BYTES = 8  # read where there is no choice: what cannot go on is found out here
_BYTES = 256


class ConstraintChecker:
    """Checks constraints, of each tenant one at a time; the latest verdicts are remembered."""

    def __init__(self) -> None:
        self._verdicts = Verdicts(self._verdict)
        self._work = BoundedWork(PROGRAM, BOUNDS, AT_ONCE)
        self.children = 0  # that were started

    async def check(
        self, constraint: Constraint, holder: Holder, patience_s: float | None = None
    ) -> None:
        """Return if a core can keep it.

        Raises:
            InvalidSyscall: it is wrong, unsupported, too large, or satisfied by no text.
            FormPending: that is not known within `patience_s`; None: wait until it is.
            CoreError, ModuleError: it could not be found out.
        """
        verdict = await self._verdicts.of(constraint, holder, patience_s)
        if verdict:
            raise refusal(constraint, verdict)

    async def close(self) -> None:
        """End what is being found out."""
        await self._verdicts.close()

    async def _verdict(
        self, constraint: Constraint, holder: Holder, begin: Callable[[], None]
    ) -> str:
        """Return the message of why a constraint cannot be kept; empty: it can."""
        self.children += 1
        try:
            said = await self._work.run(holder, msgspec.json.encode(constraint), begin)
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
    thread = threading.Thread(target=lambda: verdicts.append(verdict_of(constraint)))
    thread.start()
    thread.join()
    return verdicts[0].encode()


def verdict_of(constraint: Constraint) -> str:
    """Return the message of why a constraint cannot be kept; empty: it can. May take long."""
    schemas = schemas_of(constraint)
    known = next(filter(None, map(_known, schemas)), None)
    if known is not None:
        return not_kept(constraint, known)
    began_s = time.process_time()
    compiler = Compiler([*(bytes([byte]) for byte in range(_BYTES)), b""], (_BYTES,), list)
    why = _compile(compiler, constraint)
    took_s = time.process_time() - began_s
    if why:
        return why
    if took_s > MOST_COMPILE_S:
        late = f"it takes {took_s:.1f} s to compile, the limit is {MOST_COMPILE_S:g} s"
        return not_kept(constraint, late)
    found = next(filter(None, (_unkept(compiler, each) for each in schemas)), None)
    return not_kept(constraint, found) if found else ""


def _known(schema: object) -> str | None:
    """Return what is wrong with a schema whatever the engine makes of it."""
    try:
        validator_of(schema)
    except ValueError as error:
        return str(error)
    return unkept(schema)


def _compile(compiler: Compiler, constraint: Constraint) -> str:
    """Compile for a vocabulary of single bytes; read what every text of it begins with."""
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


# What compiles and is not kept all the same: it is tried on the parts of a schema where the engine
# has been wrong.

PROBED_PATTERNS = 16
WALKS = 12
WALK_BYTES = 40
_PREFERRED = b'\\"/nbu0'  # what a string is wrong in first


def _unkept(compiler: Compiler, schema: object) -> str | None:
    """Return by which keyword the engine would allow what the schema does not."""
    try:
        why = overlapping(schema)
    except ValueError as error:
        return str(error)
    return why or _unkept_number(compiler, schema) or _unkept_pattern(compiler, schema)


def _unkept_number(compiler: Compiler, schema: object) -> str | None:
    for alone, texts in number_probes(schema):
        validator = validator_of(alone)
        constraint = Constraint("json", json.dumps(alone))
        for text in texts:
            wrong = wrong_value(validator, json.loads(text))
            if wrong is not None and _accepts(compiler, constraint, text.encode()):
                return f"{wrong}, and would be written"
    return None


def _accepts(compiler: Compiler, constraint: Constraint, text: bytes) -> bool:
    try:
        matcher = compiler.start(constraint)
        for byte in text:
            if not matcher.allowed()[byte]:
                return False
            matcher.add(byte)
        return matcher.may_end
    except InvalidSyscall:
        return False  # it was compiled with the rest of its schema


def _unkept_pattern(compiler: Compiler, schema: object) -> str | None:
    patterns = {each["pattern"]: None for each in subschemas(schema) if "pattern" in each}
    for pattern in list(patterns)[:PROBED_PATTERNS]:
        alone: Schema = {"type": "string", "pattern": pattern}
        validator, constraint = validator_of(alone), Constraint("json", json.dumps(alone))
        for number in range(WALKS):
            text = _walked(compiler, constraint, random.Random(number))
            wrong = None if text is None else wrong_value(validator, json.loads(text))
            if wrong is not None:
                return f"{wrong}, and would be written"
    return None


def _walked(compiler: Compiler, constraint: Constraint, draws: random.Random) -> bytes | None:
    """Return a text that the engine would allow; None: it is not whole, or none is."""
    text = bytearray()
    try:
        matcher = compiler.start(constraint)
        while len(text) < WALK_BYTES and not matcher.must_end:
            allowed = matcher.allowed().nonzero()[0].tolist()
            if _BYTES in allowed:
                break
            wanted = (
                [each for each in allowed if each in _PREFERRED] if draws.random() < 0.7 else []
            )
            plain = [each for each in allowed if each < 127]
            byte = draws.choice(wanted or plain or allowed)
            matcher.add(byte)
            text.append(byte)
        return bytes(text) if matcher.may_end else None
    except InvalidSyscall:
        return None


if __name__ == "__main__":
    sys.exit(serve(_work))
