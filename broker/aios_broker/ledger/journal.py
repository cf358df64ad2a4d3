"""Read the journal: from entries of the Redis stream to transitions.

One entry is written per function call. Its field `q` is the module, `t` the transitions, one per
line, tab-separated: event, job id, attempt, who, detail. The detail is, by event:

    submit, adopt                   the metadata, JSON
    move                            the core whose queue it left, and the one that it stands at now
    suspend, hold, park, reclaim, finish  tokens,ran_ms: what the job has used so far, all in all;
                                    where a core worked on it also its name, the cost in nano-units,
                                    and their currency
    fail, cancel                    the same and the error's code; or the code alone

Field `u` is what the call charged, one line per program and core: tenant, agent, program, core,
currency, tokens, prompt tokens, ran_ms, finished, failed, cached prompt tokens, nano-units. Field
`s` is a setting that was changed: `quota`, whose, the limits, by whom. Each of `t`, `u` and `s` may
be missing.

Pure: nothing here talks to a server. What is in the journal is not trusted to be well-formed: a
line that cannot be read or that the transition table forbids is kept and marked, never dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import msgspec
from msgspec import Struct

from aios_broker.queues.records import JobMetadata
from aios_broker.redis.connection import Answer

MAX_ID_CHARACTERS = 512  # longer ones come from foreign tools and do not fit an index
MAX_TEXT_CHARACTERS = 4096
MAX_ATTEMPT_DIGITS = 9  # of an `integer` column

LINE_PARTS = 5
BEGINNINGS = ("submit", "adopt")  # the events whose detail is the metadata

_FIRST_ATTEMPTS = frozenset(["", *map(str, range(1000))])
_metadata_decoder = msgspec.json.Decoder(JobMetadata)


class Position(Struct, frozen=True, order=True):
    """The id of a journal entry."""

    ms: int = 0
    seq: int = 0

    @classmethod
    def parse(cls, text: bytes | str) -> Position:
        """Read an id such as `1700000000000-0`."""
        ms, _, seq = (text.decode() if isinstance(text, bytes) else text).partition("-")
        return cls(int(ms), int(seq or 0))

    def __str__(self) -> str:
        """Return the id as Redis writes it."""
        return f"{self.ms}-{self.seq}"

    @property
    def at(self) -> datetime:
        """When the entry was written, by Redis' clock."""
        return datetime.fromtimestamp(self.ms / 1000, tz=UTC)


class Transition(Struct, frozen=True):
    """One change of one job's state."""

    position: Position
    ordinal: int
    module: str
    event: str
    job_id: str
    attempt: int | None
    who: str
    detail: str
    at: datetime
    anomaly: bool = False  # not an arrow of the transition table, or not readable


class Entry(Struct, frozen=True):
    """One entry's transitions, as the ledger keeps them: the lines, and which of them are odd."""

    position: Position
    module: str
    text: str  # the lines as they are kept; cut where one does not fit
    parts: list[str]  # five of each line, one after the other: event, job id, attempt, who, detail
    anomalies: list[int]  # ordinals; from the journal: of those that cannot be read

    def __len__(self) -> int:
        """Return how many lines there are."""
        return len(self.parts) // LINE_PARTS

    def lines(self) -> Iterable[tuple[str, str, str, str, str]]:
        """Yield each line's parts."""
        parts = iter(self.parts)
        return zip(parts, parts, parts, parts, parts, strict=True)

    def first_events(self) -> Iterable[tuple[str, str]]:
        """Yield the job id and the event of each line, last line first: a dict keeps the first."""
        return zip(self.parts[-4::-LINE_PARTS], self.parts[-5::-LINE_PARTS], strict=True)

    def transition(self, ordinal: int) -> Transition:
        """Return what one line says."""
        first = ordinal * LINE_PARTS
        event, job_id, attempt, who, detail = self.parts[first : first + LINE_PARTS]
        return Transition(
            self.position,
            ordinal,
            self.module,
            event,
            job_id,
            int(attempt) if attempt else None,
            who,
            detail,
            self.position.at,
            ordinal in self.anomalies,
        )

    def transitions(self) -> Iterator[Transition]:
        """Yield what all lines say, in order."""
        return map(self.transition, range(len(self)))


def parse_entry(entry: Answer) -> Entry | None:
    """Return the transitions of an entry as XRANGE returns it; None: it has none."""
    stream_id, fields = entry
    pairs = dict(zip(fields[::2], fields[1::2], strict=False))
    if b"t" not in pairs:
        return None
    module = text_of(pairs.get(b"q", b""))[:MAX_ID_CHARACTERS]
    return _split(Position.parse(stream_id), module, text_of(pairs[b"t"]))


def module_of_entry(entry: Answer) -> str:
    """Return the module of an entry as XRANGE returns it; the empty string: it names none."""
    fields = entry[1]
    pairs = zip(fields[::2], fields[1::2], strict=False)
    return text_of(next((value for name, value in pairs if name == b"q"), b""))


def kept_entry(position: Position, module: str, text: str, anomalies: list[int]) -> Entry:
    """Return an entry that the ledger has kept."""
    entry = _split(position, module, text)
    return Entry(position, module, text, entry.parts, anomalies)


def _split(position: Position, module: str, text: str) -> Entry:
    parts: list[str] = []
    unreadable: list[int] = []
    cut = False
    for ordinal, line in enumerate(text.split("\n")):
        found = line.split("\t", 4)
        readable = len(found) == LINE_PARTS and (
            found[2] in _FIRST_ATTEMPTS or _is_attempt(found[2])
        )
        if not readable or len(line) > MAX_ID_CHARACTERS:
            whole, found = found, _trimmed(found)
            cut = cut or found != whole
        if not readable:
            unreadable.append(ordinal)
        parts += found
    if cut:
        rows = range(0, len(parts), LINE_PARTS)
        text = "\n".join("\t".join(parts[first : first + LINE_PARTS]) for first in rows)
    return Entry(position, module, text, parts, unreadable)


def read_entry(entry: Answer) -> Iterator[Transition]:
    """Yield the transitions of one entry as XRANGE returns it: [id, [field, value, ...]]."""
    parsed = parse_entry(entry)
    if parsed is not None:
        yield from parsed.transitions()


def _trimmed(parts: list[str]) -> list[str]:
    """Return five parts that fit their columns."""
    event, job_id, attempt, who, detail = (parts + [""] * LINE_PARTS)[:LINE_PARTS]
    return [
        event[:MAX_ID_CHARACTERS],
        job_id[:MAX_ID_CHARACTERS],
        attempt if _is_attempt(attempt) else "",
        who[:MAX_ID_CHARACTERS],
        detail[:MAX_TEXT_CHARACTERS],
    ]


def text_of(value: bytes) -> str:
    """Return a text that Postgres takes: valid UTF-8, without NUL."""
    text = value.decode(errors="replace")
    return text.replace("\x00", "�") if "\x00" in text else text


def metadata_of(transition: Transition) -> JobMetadata | None:
    """Return what a submission says of its syscall; None of any other transition."""
    return read_metadata(transition.detail) if transition.event in BEGINNINGS else None


@lru_cache(maxsize=4096)  # an agent's submissions all say the same
def read_metadata(detail: str) -> JobMetadata | None:
    """Return the metadata that a submission's detail holds; None: there are none."""
    if not detail:
        return None
    try:
        metadata = _metadata_decoder.decode(detail)
    except msgspec.DecodeError:
        return None
    if "\\u" not in detail and len(detail) <= MAX_ID_CHARACTERS:
        return metadata
    texts = {
        name: text_of(value.encode(errors="replace"))[:MAX_ID_CHARACTERS]
        for name, value in msgspec.structs.asdict(metadata).items()
        if isinstance(value, str)
    }
    return msgspec.structs.replace(metadata, **texts)


class JobUse(NamedTuple):
    """What the detail of a transition says that its syscall has used so far, all in all."""

    tokens: int = 0
    ran_ms: int = 0
    code: str = ""  # of the error that it ended with
    core: str = ""  # the last one
    cost_nano: int = 0
    currency: str = ""  # empty: the core has no price


_WITH_CORE = 5  # parts of a detail that names a core; with a code there is one more


@lru_cache(maxsize=4096)
def read_use(detail: str) -> JobUse:
    """Return what a detail says; what it does not is 0 or empty."""
    parts = detail.split(",")
    if len(parts) < 2 or not (is_count(parts[0]) and is_count(parts[1])):
        return JobUse(code=detail)
    tokens, ran_ms = int(parts[0]), int(parts[1])
    if len(parts) >= _WITH_CORE and is_count(parts[3]):
        core, cost_nano, currency, *code = parts[2:]
        return JobUse(tokens, ran_ms, ",".join(code), core, int(cost_nano), currency)
    return JobUse(tokens, ran_ms, ",".join(parts[2:]))


def _is_attempt(text: str) -> bool:
    """Whether it is none, or one that fits an `integer` column."""
    return not text or is_count(text, MAX_ATTEMPT_DIGITS)


def is_count(text: str, digits: int = 18) -> bool:
    """Whether it is a number of at most so many digits: 18 fit a `bigint` column."""
    return text.isascii() and text.isdigit() and len(text) <= digits
