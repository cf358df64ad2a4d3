"""The checker of histories: a good one passes, and each rule fails on a bad one made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import redis

from aios_broker.contract.reply import (
    ChatResult,
    EchoResult,
    Reply,
    Result,
    Timings,
    Usage,
    encode,
)
from benchmarks.chaos.checker import Bounds, Evidence, Move, check, gather
from benchmarks.chaos.history import (
    Acknowledged,
    Ended,
    Gone,
    Heard,
    Log,
    Planned,
    Record,
    Sent,
    Struck,
    read_logs,
)
from benchmarks.chaos.rest import ENDED, left_over

WORKER = "host.7.tool"


def reply_of(syscall_id: str, result: Result, *, attempts: int = 1) -> str:
    timings = Timings(attempts=attempts)
    return encode(Reply(syscall_id, result=result, timings=timings, worker=WORKER)).decode()


def life(
    syscall_id: str,
    *,
    at: float = 10.0,
    kind: str = "echo",
    text: str = "hi",
    number: int = 0,
    result: Result | None = None,
) -> tuple[list[Record], list[Move]]:
    """Return the history of one syscall that went well."""
    result = result or EchoResult(text)
    tokens = result.usage.output_tokens if isinstance(result, ChatResult) else 0
    records: list[Record] = [
        Planned(at, syscall_id, "c.1", "p", number, kind, text, tokens),
        Sent(at + 0.1, (syscall_id,)),
        Acknowledged(at + 0.2, syscall_id),
        Heard(at + 0.5, syscall_id, reply_of(syscall_id, result)),
        Ended(at + 0.6, syscall_id, ""),
    ]
    moves = [
        Move(at + 0.1, "submit", syscall_id, None, "c"),
        Move(at + 0.2, "claim", syscall_id, 1, WORKER),
        Move(at + 0.4, "finish", syscall_id, 1, WORKER, f"{tokens},5"),
    ]
    return records, moves


def broken_rules(records: Sequence[Record], moves: Sequence[Move], **more: object) -> set[str]:
    evidence = Evidence(gather(records, moves), [], {}, {}, {}, Bounds())
    return {one.rule for one in check(replace(evidence, **more))}  # type: ignore[arg-type]


CHAT = ChatResult("ab", "length", "m", Usage(1, 2), output_ids=(1, 2))


def test_a_good_history_passes() -> None:
    first, second = life("a"), life("b", at=11, kind="chat", number=1, result=CHAT)
    records, moves = [*first[0], *second[0]], [*first[1], *second[1]]
    assert broken_rules(records, moves, expected_ids={"b": (1, 2)}) == set()


def test_one_that_was_never_acknowledged_may_vanish() -> None:
    records, _ = life("a")
    assert broken_rules(records[:2], []) == set()


def test_acknowledged_and_no_end() -> None:
    records, moves = life("a")
    assert "1 lost" in broken_rules(records, moves[:2])


def test_acknowledged_and_nothing_heard() -> None:
    records, moves = life("a")
    assert broken_rules(records[:3], moves) == {"1 lost"}
    assert broken_rules([*records[:3], Gone(12, "c.1")], moves) == set()


def test_told_twice() -> None:
    records, moves = life("a")
    assert broken_rules([*records, Ended(12, "a", "")], moves) == {"1 twice"}


def test_heard_refused_and_run() -> None:
    records, moves = life("a")
    heard = [*records[:2], Ended(10.6, "a", "queue-full")]
    assert "1 refused" in broken_rules(heard, moves)
    assert "1 refused" not in broken_rules(heard, [])


def test_pushed_more_often_than_sent() -> None:
    records, moves = life("a")
    again = Heard(12, "a", reply_of("a", EchoResult("hi")))
    assert broken_rules([*records, again], moves) == {"1 twice"}
    assert broken_rules([*records, msgspec.structs.replace(again, found=True)], moves) == set()
    assert broken_rules([*records, Sent(11, ("a",)), again], moves) == set()


def test_two_replies_that_differ() -> None:
    records, moves = life("a")
    other = Heard(12, "a", reply_of("a", EchoResult("other")), found=True)
    assert broken_rules([*records, other], moves) == {"1 twice"}


def test_two_ends_in_the_journal() -> None:
    records, moves = life("a")
    rules = broken_rules(records, [*moves, Move(12, "finish", "a", 1, WORKER, "0,5")])
    assert rules == {"1 twice", "11 transitions"}


def test_an_effect_that_happened_twice_or_not_at_all() -> None:
    records, moves = life("a", kind="expand", text="0")
    assert broken_rules(records, moves, diaries={"p": ["0"]}) == set()
    assert broken_rules(records, moves, diaries={"p": ["0", "0"]}) == {"2 effects"}
    assert broken_rules(records, moves, diaries={"p": []}) == {"2 effects"}


def test_effects_in_another_order() -> None:
    first = life("a", kind="expand", text="0")
    second = life("b", at=11, kind="expand", text="1", number=1)
    records, moves = [*first[0], *second[0]], [*first[1], *second[1]]
    assert broken_rules(records, moves, diaries={"p": ["1", "0"]}) == {"4 order"}


def test_a_finish_without_the_lease() -> None:
    records, moves = life("a")
    stranger = msgspec.structs.replace(moves[2], who="host.8.tool")
    assert "3 fencing" in broken_rules(records, [*moves[:2], stranger])


def test_a_reply_of_an_earlier_attempt() -> None:
    records, moves = life("a")
    later = [
        Move(10.25, "reclaim", "a", 1, "", "0,0"),
        Move(10.3, "claim", "a", 2, WORKER),
        Move(10.4, "finish", "a", 2, WORKER, "0,5"),
    ]
    assert broken_rules(records, [*moves[:2], *later]) == {"3 fencing"}


def test_a_program_that_is_overtaken_by_itself() -> None:
    first, second = life("a"), life("b", at=10.1, number=1)
    assert broken_rules([*first[0], *second[0]], [*first[1], *second[1]]) == {"4 order"}


def test_another_answer_than_the_uninterrupted_one() -> None:
    records, moves = life("a", kind="chat", result=CHAT)
    assert broken_rules(records, moves, expected_ids={"a": (1, 3)}) == {"6 exactness"}


def test_another_text_than_was_sent() -> None:
    records, moves = life("a", result=EchoResult("ho"))
    assert broken_rules(records, moves) == {"6 exactness"}


def test_a_recovery_that_takes_too_long() -> None:
    strike = Struck(5, "kill worker", "tool-1", 7, 5, recovered_s=99)
    assert broken_rules([], [], strikes=[strike]) == {"7 recovery"}


def test_a_wait_without_end() -> None:
    records, moves = life("a")
    waited = [*records[:3], msgspec.structs.replace(records[3], at=99), records[4]]
    assert broken_rules(waited, moves) == {"8 starvation"}
    assert broken_rules(waited, moves, bounds=Bounds(down=((11, 95),))) == set()


def test_an_innocent_that_fails() -> None:
    records, moves = life("a")
    failed = [*records[:4], Ended(10.6, "a", "worker-lost")]
    assert broken_rules(failed, moves) == {"9 innocent"}


def test_an_innocent_that_the_schedule_hit_in_one_of_its_tries() -> None:
    records, _ = life("a")
    ended = [*records[:3], Ended(20.6, "a", "worker-lost")]
    tries = [Move(10.1, "submit", "a", None, "c")]
    for attempt in (1, 2, 3):
        tries += [
            Move(10.0 + attempt, "claim", "a", attempt, WORKER),
            Move(10.5 + attempt, "reclaim", "a", attempt, ""),
        ]
    tries[-1] = Move(13.5, "fail", "a", 3, "", "worker-lost")
    strike = Struck(13.2, "kill worker", "tool-1", 7, 13.2, recovered_s=1.0)

    assert broken_rules(ended, tries, strikes=[strike]) == set()
    for elsewhere in (replace_struck(strike, pid=8), replace_struck(strike, at=13.7)):
        assert broken_rules(ended, tries, strikes=[elsewhere]) == {"9 innocent"}
    assert broken_rules(ended, [*tries[:3], tries[-1]], strikes=[strike]) == {"9 innocent"}


def replace_struck(strike: Struck, **changes: float) -> Struck:
    return msgspec.structs.replace(strike, **changes)


def test_poison_that_is_not_quarantined_or_tried_too_often() -> None:
    records, moves = life("a", kind="poison", text="poison:segfault:0")
    assert broken_rules(records, moves) == {"9 poison"}
    tries = [Move(10.1, "submit", "a", None, "c")]
    for attempt in range(1, 6):
        tries += [
            Move(10.2, "claim", "a", attempt, WORKER),
            Move(10.3, "reclaim", "a", attempt, ""),
        ]
    tries[-1] = Move(10.3, "fail", "a", 5, "", "worker-lost")
    ended = [*records[:3], Ended(10.6, "a", "worker-lost")]
    assert broken_rules(ended, tries) == {"9 cap"}


def test_charges_that_are_not_the_use() -> None:
    records, moves = life("a", kind="chat", result=CHAT)
    dear = msgspec.structs.replace(moves[2], detail="4,5")
    assert broken_rules(records, [*moves[:2], dear]) == {"10 charges"}


@pytest.mark.parametrize("left_out", [0, 1])
def test_a_transition_that_is_missing(left_out: int) -> None:
    records, moves = life("a")
    del moves[left_out]
    assert "11 transitions" in broken_rules(records, moves)


def test_an_attempt_that_is_left_out() -> None:
    records, moves = life("a")
    rules = broken_rules(
        records, [moves[0], *(msgspec.structs.replace(move, attempt=2) for move in moves[1:])]
    )
    assert "11 transitions" in rules


def test_a_lead_that_changes_by_itself() -> None:
    assert broken_rules([], [], epoch=2) == set()
    assert broken_rules([], [], epoch=50) == {"7 leadership"}


def test_what_is_left_over() -> None:
    assert broken_rules([], [], left_over={"rq:aios:live:tool": 1}) == {"14 leaks"}


def test_what_a_crash_of_redis_may_lose_is_excused_there_alone() -> None:
    records, moves = life("a")
    assert broken_rules(records, moves[:2], bounds=Bounds(amnesia=((10.0, 12.0),))) == set()
    assert "1 lost" in broken_rules(records, moves[:2], bounds=Bounds(amnesia=((20.0, 22.0),)))


def test_a_log_survives_its_process_and_loses_no_line_but_a_torn_one(tmp_path: Path) -> None:
    records, _ = life("a")
    with Log(tmp_path / "one.jsonl") as log:
        for record in records:
            log.write(record)
    with (tmp_path / "one.jsonl").open("ab") as file:
        file.write(b'{"type":"ended","at":99')
    assert read_logs([tmp_path / "one.jsonl"]) == records


def test_what_is_left_over_is_seen_in_the_queue_of_a_core_too(
    redis_url: str,
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.zadd("rq:wip:llm.small", {f"{'ab' * 16}:1": 1.0})
        client.rpush(f"{ENDED}llm.small", msgspec.msgpack.encode([2**40, "", "cd" * 16]))
        for job_id in ("cd" * 16, "ef" * 16):
            client.hset(f"rq:job:{job_id}", "status", "finished")
        found = left_over(client)
    assert found == {"rq:wip:llm.small": 1, "rq:job:* that never expires": 1}
