"""Which rule `aios why` names, and with which numbers."""

from dataclasses import replace

import msgspec
import pytest

from aios_broker.contract.access import Approval
from aios_broker.contract.errors import Cancelled
from aios_broker.contract.reply import Reply, Timings, failure
from aios_broker.contract.syscall import Need, State
from aios_broker.queues.admission import NotAdmitted, Resource, Shortage
from aios_broker.queues.fleet import WorkerView
from aios_broker.queues.quota import Barrier, Subject
from aios_broker.queues.records import JobMetadata, JobView, PolicyRow, Uncut
from aios_broker.views.why import Ended, Surroundings, explain, explain_ended
from aios_cli.why import worded

WORKER = WorkerView("llm-1", "llm", slots=2, cores=("small",), state="busy", heartbeat_age_s=0.5)


def job(number: int, state: State = "queued", **fields: object) -> JobView:
    known: dict[str, object] = {
        "job_id": f"{number:032x}",
        "module": "llm",
        "state": state,
        "metadata": JobMetadata(agent=f"agent-{number}", kind="llm.chat"),
        "needs": (),
        "worker": "",
        "attempt": 1,
        "slices": 2,
        "suspensions": 2,
        "losses": 0,
        "tokens": 48,
        "queued_s": 12.0,
        "ran_s": 3.0,
        "age_s": 20.0,
        "deadline_in_s": 580.0,
        "position": None,
        "score": None,
    }
    return JobView(**{**known, **fields})  # type: ignore[arg-type]


RUNNING = [job(1, "running", worker="llm-1"), job(2, "running", worker="llm-1")]
WAITING = [job(3, position=0, score=100.0), job(4, position=1, score=250.0)]
BUSY = Surroundings(
    PolicyRow(quantum_tokens=24),
    [*RUNNING, *WAITING],
    [WORKER],
    fleet_suspended=False,
    scheduler="scheduler-1",
)


def test_the_order_is_the_reason_when_all_slots_are_busy() -> None:
    found = explain(WAITING[1], BUSY)

    assert found.rule == "order"
    assert "2 of 2 slots busy" in found.text
    assert "1 syscall goes before it" in found.text
    assert "agent-1" in found.text
    assert (found.numbers["position"], found.numbers["waiting"]) == (2, 2)
    assert found.numbers["free_slots"] == 0
    assert (found.numbers["score"], found.numbers["head_score"]) == (250.0, 100.0)
    assert found.numbers["deadline_in_s"] == 580.0


def test_a_free_slot_makes_it_next() -> None:
    found = explain(WAITING[0], replace(BUSY, jobs=[RUNNING[0], *WAITING]))
    assert (found.rule, found.numbers["free_slots"]) == ("next", 1)


def test_free_slots_that_go_to_others_before_it_are_no_reason() -> None:
    found = explain(WAITING[1], replace(BUSY, jobs=[RUNNING[0], *WAITING]))
    assert found.rule == "order"


@pytest.mark.parametrize(
    ("around", "subject", "rule"),
    [
        (replace(BUSY, fleet_suspended=True), WAITING[0], "fleet-suspended"),
        (replace(BUSY, workers=[]), WAITING[0], "no-worker"),
        (BUSY, job(5, position=2, needs=(Need("core", "large"),)), "no-core"),
        (BUSY, job(6, "held"), "held"),
        (BUSY, job(7, "parked"), "parked"),
        (BUSY, RUNNING[0], "running"),
    ],
)
def test_the_rule_that_has_to_be_lifted_first_is_named(
    around: Surroundings, subject: JobView, rule: str
) -> None:
    assert explain(subject, around).rule == rule


def test_a_parked_one_says_what_a_person_has_to_decide() -> None:
    asked = Approval(
        "a" * 32,
        "waiting",
        "7",
        "ada",
        "default",
        "storage.delete",
        "delete",
        {},
        "",
        "delete /x",
        0.0,
        60.0,
    )
    found = explain(job(7, "parked"), replace(BUSY, approval=asked))
    assert "delete /x" in found.text
    assert found.numbers["approval"] == asked.id
    assert found.numbers["expires_at_s"] == 60.0
    decided = msgspec.structs.replace(asked, state="approved", decided_by="boss")
    found = explain(job(7, "parked"), replace(BUSY, approval=decided))
    assert "approved" in found.text
    assert found.numbers["decided_by"] == "boss"


@pytest.mark.parametrize(
    ("barrier", "words"),
    [
        (
            Barrier("max_running", Subject.of_agent("ada"), 4, 4, None),
            "of tenant 'default' runs 4 syscalls, and its quota is 4. It may go on when one of",
        ),
        (Barrier("max_running", Subject.of_tenant("acme"), 0, 0, None), "never, under this quota"),
        (
            Barrier("tokens_per_minute", Subject.of_tenant("acme"), 700, 600, 10.0),
            "Tenant 'acme' has used up its 600 tokens per minute. It may go on in 10.0 s.",
        ),
        (Barrier("slot_seconds_per_minute", Subject.of_agent("ada"), 1, 0, None), "never"),
    ],
)
def test_a_quota_says_whose_it_is_and_when_it_opens(barrier: Barrier, words: str) -> None:
    found = explain(WAITING[0], replace(BUSY, barrier=barrier))
    assert (found.rule, found.numbers["quota"]) == ("quota", barrier.limit)
    assert words in found.text


def test_a_slot_of_another_core_is_not_counted() -> None:
    other = WorkerView("llm-2", "llm", slots=8, cores=("large",), state="idle", heartbeat_age_s=0.1)
    found = explain(
        job(5, position=0, needs=(Need("core", "small"),)), replace(BUSY, workers=[WORKER, other])
    )
    assert (found.rule, found.numbers["slots"]) == ("order", 2)


def test_without_a_scheduler_it_says_which_order_holds() -> None:
    found = explain(WAITING[1], replace(BUSY, scheduler=None))
    assert "none lives" in str(found.numbers["scheduler"])


def test_an_ended_one_tells_its_error_and_its_times() -> None:
    cancelled = failure("0" * 32, Cancelled("an operator cancelled it", remedy="send it again"))
    found = explain_ended(Ended("0" * 32, "cancelled", cancelled))
    assert (found.rule, found.remedy) == ("cancelled", "send it again")
    assert found.numbers == {"error": "cancelled"}

    answered = Reply("0" * 32, timings=Timings(queued_s=2.0, ran_s=1.0, slices=3, attempts=3))
    numbers = explain_ended(Ended("0" * 32, "finished", answered)).numbers
    assert (numbers["waited_s"], numbers["slices"]) == (2.0, 3)


def test_a_resource_says_who_holds_it_and_whom_it_is_owed_to() -> None:
    lock = Resource.lock("report", "acme")
    shortage = Shortage(lock, holders=1, limit=1, owed_to="a" * 32, held_by=("b" * 32,))
    found = explain(WAITING[0], replace(BUSY, barrier=shortage))
    assert found.rule == "resource"
    assert "lock 'report' of tenant 'acme': 1 of 1 place taken by bbbbbbbb" in found.text
    assert "owed to aaaaaaaa" in found.text
    assert (found.numbers["resource"], found.numbers["held"]) == ("lock:acme report", 1)


def test_who_has_what_it_waits_for_is_named_as_far_as_it_helps() -> None:
    tool = Resource.tool("org/search", agent="ada")
    shortage = Shortage(tool, 6, 6, None, tuple(each * 32 for each in "abcdef"))
    found = explain(WAITING[0], replace(BUSY, barrier=shortage))
    assert "tool 'org/search' that agent 'ada' of tenant 'default' may have at once" in found.text
    assert "aaaaaaaa, bbbbbbbb, cccccccc, dddddddd and 2 more" in found.text


def test_a_tool_without_places_is_waited_for_in_vain() -> None:
    found = explain(
        WAITING[0], replace(BUSY, barrier=Shortage(Resource.tool("search"), 0, 0, owed_to=None))
    )
    assert found.remedy == "raise its limit"
    assert "owed" not in found.text


def test_a_program_that_is_not_admitted_says_so() -> None:
    barrier = NotAdmitted(Subject.of_program("p", "ada"), ends_in_s=4.0)
    found = explain(WAITING[0], replace(BUSY, barrier=barrier))
    assert (found.rule, found.numbers["program"]) == ("program", "p")
    assert "program 'p' of agent 'ada' of tenant 'default'" in found.text


# A cut that was not made.

DEAR = Uncut(slice_s=0.4, resume_s=0.25, least_s=2.5, contexts=0, fits=0)
NO_ROOM = Uncut(slice_s=0.5, resume_s=0.02, least_s=9.0, contexts=5, fits=4)


def test_a_running_one_tells_the_price_of_its_cut() -> None:
    found = explain(replace(RUNNING[0], uncut=DEAR), BUSY)
    assert "resuming it costs 250 ms, so it pays after 2.5 s" in found.text
    assert found.numbers["resume_ms"] == 250
    assert found.numbers["slice_ms"] == 400
    assert found.numbers["cut_pays_after_ms"] == 2500


def test_a_waiting_one_tells_of_a_memory_that_is_full() -> None:
    running = [RUNNING[0], replace(RUNNING[1], uncut=NO_ROOM)]
    found = explain(WAITING[0], replace(BUSY, jobs=[*running, *WAITING]))
    assert "5 contexts are begun and 4 fit the memory" in found.text
    assert (found.numbers["contexts"], found.numbers["contexts_that_fit"]) == (5, 4)


def test_where_nobody_is_cut_anyway_it_tells_nothing_of_it() -> None:
    running = [replace(RUNNING[0], uncut=DEAR)]
    around = replace(BUSY, policy=PolicyRow("fifo", "none"), jobs=[*running, *WAITING])
    assert "contexts" not in explain(WAITING[0], around).numbers


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (("waited_s", 12.0), ("waited", "12.0 s")),
        (("resume_ms", 250), ("resume", "250 ms")),
        (("expires_at_s", 60.0), ("expires at", "1970-01-01 00:01:00 UTC")),
        (("free_slots", 0), ("free slots", "0")),
        (("scheduler", "host-1"), ("scheduler", "host-1")),
    ],
)
def test_a_person_reads_the_unit_at_the_number(
    number: tuple[str, float | str], words: tuple[str, str]
) -> None:
    assert worded(*number) == words


@pytest.mark.parametrize(
    ("subject", "around"), [(WAITING[1], BUSY), (RUNNING[0], BUSY), (job(6, "held"), BUSY)]
)
def test_programs_find_a_units_name_in_each_key_and_no_text_in_place_of_a_number(
    subject: JobView, around: Surroundings
) -> None:
    numbers = explain(subject, around).numbers

    assert all(name.replace("_", "a").isalnum() and name.islower() for name in numbers)
    texts = {name for name, value in numbers.items() if isinstance(value, str)}
    whose = {"tenant", "agent", "program"}
    assert texts <= {"state", "module", "worker", "policy", "core", "scheduler", *whose}
