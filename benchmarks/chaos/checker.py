"""Prove or refute the kernel's promises, from outside: what clients heard, and the journal.

Pure: histories in, broken promises out. The numbers of the rules are those of the invariants in
docs/how-to-chaos.md. What a crash of Redis may lose by its own setting (the last second that was
not on disk) is known by `Bounds.amnesia` and excused there, and nowhere else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from aios_broker.contract.errors import KeyConflict, QueueFull, QuotaExceeded, UnknownCore
from aios_broker.contract.reply import ChatResult, EchoResult, Reply
from aios_broker.contract.transitions import TABLE, TERMINAL, Event
from benchmarks.chaos.history import Acknowledged, Ended, Gone, Heard, Planned, Record, Sent, Struck

_EVENTS: dict[str, Event] = {event: event for event in TABLE}
_ENDS = frozenset(event for event, (_, state) in TABLE.items() if state in TERMINAL)
_reply_decoder = msgspec.json.Decoder(Reply)

# How each poison may end. One that fills the memory may do so for longer than a lease.
POISON_ENDS = {
    "segfault": {"worker-lost"},
    "abort": {"worker-lost"},
    "loop": {"worker-lost"},
    "memory": {"module-error", "worker-lost"},
    "huge": {"module-error", "worker-lost"},
    "crash": {"module-error"},
}


class Move(msgspec.Struct, frozen=True):
    """One line of the journal, as the ledger keeps it."""

    at: float
    event: str
    id: str
    attempt: int | None
    who: str
    detail: str = ""


_REFUSALS = frozenset((QueueFull.code, QuotaExceeded.code, UnknownCore.code, KeyConflict.code))


@dataclass(frozen=True, slots=True)
class Broken:
    """A promise that was not kept."""

    rule: str
    id: str
    why: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is promised in numbers, and what is excused."""

    # From the acknowledgement to the reply: three times in a row the workers of a module may be
    # held by poison that never returns, for three leases and a restart.
    wait_s: float = 40.0
    recovery_s: float = 15.0  # from a fault to work going on
    max_losses: int = 3
    amnesia: tuple[tuple[float, float], ...] = ()  # when Redis may have lost what it had said
    down: tuple[tuple[float, float], ...] = ()  # when a server was away: waiting is not counted


@dataclass(slots=True)
class Story:
    """All that is known of one syscall."""

    planned: Planned
    sent: list[float] = field(default_factory=list)
    acknowledged: float | None = None
    heard: list[Heard] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    abandoned: bool = False  # its client was killed before it heard

    def hear(self, record: Acknowledged | Heard | Ended) -> None:
        """Take in what its client heard of it."""
        match record:
            case Acknowledged(at):
                self.acknowledged = self.acknowledged or at
            case Heard():
                self.heard.append(record)
            case Ended():
                self.ended.append(record)

    @property
    def is_known(self) -> bool:
        """Whether the kernel said that it has it: by an acknowledgement, or by its reply."""
        return self.acknowledged is not None or bool(self.heard)

    @property
    def ends(self) -> list[Move]:
        """Its terminal transitions."""
        return [move for move in self.moves if move.event in _ENDS]

    @property
    def replies(self) -> list[Reply]:
        """What was heard, decoded."""
        return [_reply_decoder.decode(one.reply) for one in self.heard]

    @property
    def poison(self) -> str:
        """The kind of poison that it is, or the empty string."""
        return self.planned.text.split(":")[1] if self.planned.kind == "poison" else ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A whole run."""

    stories: Mapping[str, Story]
    strikes: Sequence[Struck]
    expected_ids: Mapping[str, tuple[int, ...]]  # of chats, generated without any interruption
    diaries: Mapping[str, Sequence[str]]  # program -> entries of its context, as they are at last
    left_over: Mapping[str, int]  # what should be empty at rest, and is not
    bounds: Bounds
    epoch: int = 0  # of the last leadership


def gather(records: Iterable[Record], moves: Iterable[Move]) -> dict[str, Story]:
    """Return the stories of all syscalls that clients planned."""
    known = list(records)
    stories = {one.id: Story(one) for one in known if isinstance(one, Planned)}
    for record in known:
        if isinstance(record, Sent):
            for syscall_id in record.ids:
                stories[syscall_id].sent.append(record.at)
        elif isinstance(record, Acknowledged | Heard | Ended) and record.id in stories:
            stories[record.id].hear(record)
    for move in moves:
        if move.id in stories:
            stories[move.id].moves.append(move)
    clients = {one.client for one in known if isinstance(one, Gone)}
    for story in stories.values():
        story.abandoned = story.planned.client in clients and not story.ended
    return stories


def check(evidence: Evidence) -> list[Broken]:
    """Return all promises that were broken."""
    broken = [
        one
        for story in evidence.stories.values()
        for rule in STORY_RULES
        for one in rule(story, evidence)
    ]
    return broken + [one for whole in WHOLE_RULES for one in whole(evidence)]


def _within(at: float, windows: Sequence[tuple[float, float]]) -> bool:
    return any(begin <= at <= end for begin, end in windows)


def forgotten(story: Story, bounds: Bounds) -> bool:
    """Whether a crash of Redis may have undone a part of the story."""
    if not bounds.amnesia:
        return False
    times = [*story.sent, *(move.at for move in story.moves), *(one.at for one in story.heard)]
    return any(_within(at, bounds.amnesia) for at in times)


def lost(story: Story, evidence: Evidence) -> Iterator[Broken]:
    """1: what was acknowledged reaches an end, and whoever waits hears it."""
    if not story.is_known:
        return
    if not story.ends and not forgotten(story, evidence.bounds):
        yield Broken("1 lost", story.planned.id, "acknowledged, and has no end in the journal")
    if not story.ended and not story.abandoned:
        yield Broken("1 lost", story.planned.id, "acknowledged, and its program heard nothing")


def told_once(story: Story, evidence: Evidence) -> Iterator[Broken]:
    """1: one end, one reply, the same whenever it is heard again."""
    syscall_id = story.planned.id
    if len(story.ended) > 1:
        yield Broken("1 twice", syscall_id, f"its program was told {len(story.ended)} times")
    if forgotten(story, evidence.bounds):
        return
    if len(story.ends) > 1:
        yield Broken("1 twice", syscall_id, f"{len(story.ends)} ends in the journal")
    if len({one.reply for one in story.heard}) > 1:
        yield Broken("1 twice", syscall_id, "two replies that differ were heard")
    pushed = sum(not one.found for one in story.heard)
    if pushed > max(1, len(story.sent)):
        yield Broken("1 twice", syscall_id, f"sent {len(story.sent)} times, pushed {pushed} times")


def refused(story: Story, evidence: Evidence) -> Iterator[Broken]:
    """1: what its program heard refused was never taken; an acknowledgement is no proof of it."""
    if forgotten(story, evidence.bounds):
        return
    if story.moves and any(one.code in _REFUSALS for one in story.ended):
        yield Broken(
            "1 refused", story.planned.id, "its program heard it refused, and it was taken"
        )


def fenced(story: Story, evidence: Evidence) -> Iterator[Broken]:
    """3: only the last attempt ends it, by the worker that has it."""
    holder: tuple[int | None, str] | None = None
    for move in story.moves:
        if move.event == "claim":
            holder = (move.attempt, move.who)
        elif move.event in ("finish", "suspend") and holder != (move.attempt, move.who):
            yield Broken(
                "3 fencing",
                story.planned.id,
                f"{move.event} by {move.who}, attempt {move.attempt}: the lease was {holder}",
            )
    if story.replies and not forgotten(story, evidence.bounds):
        reply, ends = story.replies[0], story.ends
        if (
            reply.worker
            and ends
            and (ends[-1].attempt, ends[-1].who)
            != (
                reply.timings.attempts,
                reply.worker,
            )
        ):
            yield Broken("3 fencing", story.planned.id, "the reply is not that of its last attempt")


def right_answer(story: Story, evidence: Evidence) -> Iterator[Broken]:
    """6: an answer is what it would have been without any fault."""
    syscall_id = story.planned.id
    for reply in story.replies[:1]:
        match reply.result:
            case EchoResult(text) if story.planned.kind == "echo" and text != story.planned.text:
                yield Broken("6 exactness", syscall_id, "another text came back")
            case ChatResult(output_ids=ids) if ids != evidence.expected_ids.get(syscall_id, ids):
                yield Broken("6 exactness", syscall_id, "resumed, it is not the uninterrupted one")
            case _:
                pass


def struck_at_work(story: Story, evidence: Evidence) -> bool:
    """Whether it died as often as it may, and one of those times by the schedule."""
    claims = [move for move in story.moves if move.event == "claim"]
    losses = [move for move in story.moves if move.event in ("reclaim", "fail")]
    if len(claims) < evidence.bounds.max_losses:
        return False
    return any(
        f".{strike.pid}." in claim.who and claim.at <= strike.at <= loss.at
        for claim, loss in zip(claims, losses, strict=False)
        for strike in evidence.strikes
    )


def innocent(story: Story, evidence: Evidence) -> Iterator[Broken]:
    """9: poison ends as poison does, and nothing else ends with an error."""
    for end in story.ended:
        allowed = set(POISON_ENDS[story.poison]) if story.poison else {""}
        if story.planned.kind == "cancel":
            allowed.add("cancelled")  # or it was faster
        if struck_at_work(story, evidence):
            allowed.add("worker-lost")  # a kernel cannot tell: it was alone on a worker that died
        if end.code not in allowed:
            wanted = " or ".join(sorted(code or "a result" for code in allowed))
            rule = "9 poison" if story.poison else "9 innocent"
            yield Broken(rule, story.planned.id, f"ended with {end.code!r}, not {wanted}")


def capped(story: Story, evidence: Evidence) -> Iterator[Broken]:
    """9: it is not tried more often than it may."""
    losses = sum(move.event == "reclaim" for move in story.moves)
    limit = evidence.bounds.max_losses
    if losses > limit and story.poison:
        yield Broken("9 cap", story.planned.id, f"tried again {losses} times, the limit is {limit}")


def lawful(story: Story, evidence: Evidence) -> Iterator[Broken]:
    """11: its states follow the table; each claim is the next attempt."""
    if forgotten(story, evidence.bounds):
        return
    state, attempt = None, 0
    for move in story.moves:
        event = _EVENTS.get(move.event)
        if event is None or state not in TABLE[event][0]:
            yield Broken("11 transitions", story.planned.id, f"{move.event!r} from {state!r}")
            return
        state = TABLE[event][1] or state
        if event == "claim":
            if move.attempt != attempt + 1:
                yield Broken(
                    "11 transitions",
                    story.planned.id,
                    f"attempt {move.attempt} after attempt {attempt}",
                )
            attempt = move.attempt or 0


def charged(story: Story, evidence: Evidence) -> Iterator[Broken]:
    """10: what the journal charges is what the answer used."""
    finishes = [move for move in story.moves if move.event == "finish"]
    if not finishes or not story.replies or forgotten(story, evidence.bounds):
        return
    result = story.replies[0].result
    used = result.usage.output_tokens if isinstance(result, ChatResult) else 0
    tokens = int(finishes[-1].detail.split(",")[0] or 0)
    if tokens != used and story.planned.kind in ("chat", "cancel", "echo"):
        yield Broken("10 charges", story.planned.id, f"charged {tokens} tokens, used {used}")


def served(story: Story, evidence: Evidence) -> Iterator[Broken]:
    """8: nobody waits for longer than the bound, outages not counted."""
    if story.acknowledged is None or not story.heard or story.poison:
        return
    began, ended = story.acknowledged, story.heard[0].at
    away_s = sum(
        max(0.0, min(ended, end) - max(began, begin)) for begin, end in evidence.bounds.down
    )
    if ended - began - away_s > evidence.bounds.wait_s:
        yield Broken("8 starvation", story.planned.id, f"waited {ended - began:.1f} s")


def in_order(evidence: Evidence) -> Iterator[Broken]:
    """4: what a program asked for one after the other ends one after the other."""
    programs: dict[str, list[Story]] = defaultdict(list)
    for story in evidence.stories.values():
        programs[story.planned.program].append(story)
    for stories in programs.values():
        stories.sort(key=lambda story: story.planned.number)
        last: Move | None = None
        for story in stories:
            if forgotten(story, evidence.bounds) or not story.ends:
                last = None
                continue
            first = story.moves[0]
            if last is not None and story.sent and first.at < last.at:
                yield Broken("4 order", story.planned.id, "begins before its predecessor ends")
            last = story.ends[0]


def effects(evidence: Evidence) -> Iterator[Broken]:
    """2: an effect that was acknowledged with a result happened once, in its program's order."""
    for program, entries in evidence.diaries.items():
        for entry, times in Counter(entries).items():
            if times > 1:
                yield Broken("2 effects", program, f"{entry!r} happened {times} times")
        done = [
            story.planned
            for story in evidence.stories.values()
            if story.planned.program == program
            and story.planned.kind == "expand"
            and any(end.code == "" for end in story.ended)
            and not forgotten(story, evidence.bounds)
        ]
        done.sort(key=lambda planned: planned.number)
        missing = [one.text for one in done if one.text not in entries]
        if missing:
            yield Broken("2 effects", program, f"acknowledged, and not there: {missing[:3]}")
        places = [entries.index(one.text) for one in done if one.text in entries]
        if places != sorted(places):
            yield Broken("4 order", program, "its effects are not in the order it asked for")


def recovered(evidence: Evidence) -> Iterator[Broken]:
    """7: after a fault work goes on within the bound."""
    for strike in evidence.strikes:
        if strike.recovered_s is not None and strike.recovered_s > evidence.bounds.recovery_s:
            yield Broken("7 recovery", strike.victim, f"{strike.kind}: {strike.recovered_s:.1f} s")


def led_calmly(evidence: Evidence) -> Iterator[Broken]:
    """7: leadership changes where a fault makes it change, and not by itself."""
    most = 2 + 2 * len(evidence.strikes)
    if evidence.epoch > most:
        yield Broken(
            "7 leadership",
            "scheduler",
            f"{evidence.epoch} leaderships, {len(evidence.strikes)} faults",
        )


def leakless(evidence: Evidence) -> Iterator[Broken]:
    """14: at rest nothing is left over."""
    for name, count in evidence.left_over.items():
        yield Broken("14 leaks", name, f"{count} left at rest")


STORY_RULES: tuple[Callable[[Story, Evidence], Iterator[Broken]], ...] = (
    lost,
    told_once,
    refused,
    fenced,
    right_answer,
    innocent,
    capped,
    lawful,
    charged,
    served,
)
WHOLE_RULES: tuple[Callable[[Evidence], Iterator[Broken]], ...] = (
    in_order,
    effects,
    recovered,
    led_calmly,
    leakless,
)
