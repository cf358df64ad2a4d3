"""`aios top`: what keys do, and that a frame fits the terminal that it is drawn on."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from aios_broker.contract.cores import CoreCard
from aios_broker.queues.ended import EndedJob
from aios_broker.queues.fleet import WorkerView
from aios_broker.queues.records import CoreView, JobMetadata, QueueView
from aios_cli.top import ENDED_SHOWN, Frame, draw, heading, module_lines
from aios_cli.top_screen import END, ESCAPE, KEYS, KeyCommand, Screen
from aios_workers.modules.memory.block import MemoryTotals
from tests.unit.test_cli_tables import job

WORKERS = [
    WorkerView(f"{module}-1", module, slots=slots, cores=(), state="busy", heartbeat_age_s=0.1)
    for module, slots in (("llm", 2), ("tool", 64), ("memory", 32))
]


def queue(module: str, **fields: int) -> QueueView:
    known = {"waiting": 0, "running": 0, "held": 0, "finished": 0, "failed": 0, "quarantined": 0}
    view = QueueView(module=module, policy="rr", oldest_wait_s=3.0, **known)  # type: ignore[arg-type]
    return replace(view, **fields)  # type: ignore[arg-type]


def frame(waiting: int, ended: int = 0) -> Frame:
    jobs = [job("running", worker="llm-1"), *(job() for _ in range(waiting))]
    over = [EndedJob(job("failed", worker="llm-1"), 2.0, "core-error") for _ in range(ended)]
    return Frame(
        queues=[queue("llm", running=1, waiting=waiting), queue("tool"), queue("memory")],
        workers=WORKERS,
        jobs=jobs,
        ended=over,
        suspended=False,
        memory=MemoryTotals(),
        tokens_per_s=41.5,
    )


def lines_of(shown: Frame, screen: Screen, width: int = 80, height: int = 24) -> list[str]:
    terminal = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None
    )
    terminal.print(draw(shown, screen, terminal))
    drawn: str = terminal.file.getvalue()  # type: ignore[attr-defined]
    return drawn.splitlines()


def typed(screen: Screen, keys: str) -> KeyCommand | None:
    done = None
    for key in keys:
        done = screen.pressed(key)
    return done


@pytest.mark.parametrize("waiting", [0, 3, 12, 200])
@pytest.mark.parametrize("ended", [0, 2, 10])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 15), (200, 60)])
def test_a_frame_fits_its_terminal(waiting: int, ended: int, width: int, height: int) -> None:
    lines = lines_of(frame(waiting, ended), Screen(), width, height)

    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[-1].startswith("q quit")
    assert lines[-2].startswith(f"{waiting + 1} syscall")


def test_what_does_not_fit_is_counted_and_what_ended_lately_has_its_place() -> None:
    lines = lines_of(frame(200, 10), Screen())

    rows = [line for line in lines if line.startswith("3f2a91bc")]
    [more] = [line for line in lines if line.endswith(" more")]
    assert int(more.split()[1]) == 201 - (len(rows) - ENDED_SHOWN)
    assert sum("core-error" in row for row in rows) == ENDED_SHOWN


def test_the_head_tells_of_each_modules_slots_and_of_the_models_speed() -> None:
    assert "3 workers, 1 of 98 slots busy" in heading(frame(5))
    llm, tool, _ = module_lines(frame(5))
    assert llm == "llm     rr: 1 of 2 slots, 5 waiting (oldest 3.0s), 42 tokens/s"
    assert tool == "tool    rr: 0 of 64 slots, 0 waiting"


def test_each_core_has_a_row_with_its_speed() -> None:
    cores = [
        CoreView(CoreCard(name=name, model=name), slots=2, silent_s=0.0, waiting=0, running=running)
        for name, running in (("small", 1), ("large", 0))
    ]
    shown = replace(frame(0), queues=[queue("llm", running=1)], core_tokens_per_s={"small": 41.5})
    [llm] = shown.queues
    shown = replace(shown, queues=[replace(llm, cores=cores)])
    assert module_lines(shown)[1:] == [
        "  small: 1 of 2 slots, 0 waiting, 42 tokens/s",
        "  large: 0 of 2 slots, 0 waiting, 0 tokens/s",
    ]
    assert module_lines(replace(shown, tokens_per_s=None))[1] == "  small: 1 of 2 slots, 0 waiting"


def test_a_filter_is_typed_seen_and_taken_away() -> None:
    screen, jobs = Screen(), [job(), job(metadata=JobMetadata("clerk", "llm.chat"))]
    assert typed(screen, "f") is None
    assert typed(screen, "clxe\x7f\x7ferk") is None
    assert screen.foot(KEYS) == "filter: clerk_"
    assert len(screen.chosen(jobs)) == 2
    typed(screen, "\r")
    assert [one.metadata.agent for one in screen.chosen(jobs)] == ["clerk"]
    assert "1 with 'clerk'" in screen.summary("2 syscalls", 1)
    typed(screen, ESCAPE)
    assert len(screen.chosen(jobs)) == 2


def test_s_sorts_in_turns() -> None:
    jobs = [job(age_s=1.0, queued_s=9.0, tokens=5), job(age_s=7.0, queued_s=2.0, tokens=50)]
    screen, orders = Screen(), []
    for _ in range(5):
        orders.append((screen.order, [jobs.index(one) for one in screen.chosen(jobs)]))
        screen.pressed("s")
    assert orders == [
        ("queue", [0, 1]),
        ("age", [1, 0]),
        ("wait", [0, 1]),
        ("tokens", [1, 0]),
        ("queue", [0, 1]),
    ]


def test_k_ends_what_is_named_and_nothing_else() -> None:
    screen = Screen()
    assert typed(screen, "k3f2a91bc\r") == KeyCommand("kill", "3f2a91bc")
    assert typed(screen, "k\r") is None
    assert typed(screen, "k3f2a" + ESCAPE) is None
    assert not screen.asked
    assert typed(screen, "kq") is None  # a letter of what is typed
    assert screen.pressed(END) == KeyCommand("quit")


def test_help_is_a_page_and_back() -> None:
    screen = Screen()
    screen.pressed("h")
    lines = lines_of(frame(200, 10), screen)
    assert len(lines) <= 24
    assert not any("…" in line for line in lines)  # nothing of it is cut
    assert any(line.strip().startswith("k        end a syscall") for line in lines)
    screen.pressed("h")
    assert not screen.help
    assert screen.pressed("q") == KeyCommand("quit")


def test_arrows_do_nothing() -> None:
    screen = Screen(wanted="x")
    assert screen.pressed("\x1b[A") is None
    assert screen.wanted == "x"
