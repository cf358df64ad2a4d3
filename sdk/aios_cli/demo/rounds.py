"""Both policies in turns, and again where other programs of the machine have disturbed one."""

from collections.abc import Callable, Sequence

from aios_cli.demo.cpu_share import cpu_times, others_share
from aios_cli.demo.run import FIFO, ROUND_ROBIN, Demo, PolicyRun

MOST_ROUNDS = 3
DISTURBED_SHARE = 0.1  # of all processors that others took: beyond it a run is made again


async def both_policies(
    demo: Demo, say: Callable[[str], None], *, rounds: int
) -> tuple[PolicyRun, PolicyRun]:
    """Run the load under round robin and under FIFO; return of each the least disturbed run.

    Each further round begins with the other policy, so that what changes slowly changes both.
    Every interrupted generation of every round is compared with its uninterrupted run.
    """
    under_rr: list[PolicyRun] = []
    under_fifo: list[PolicyRun] = []
    for number in range(rounds):
        turns = [(ROUND_ROBIN, under_rr), (FIFO, under_fifo)]
        for policy, runs in turns if number % 2 == 0 else turns[::-1]:
            before = cpu_times()
            run = await demo.run(policy)
            run.others_share = others_share(before, cpu_times())
            runs.append(run)
        latest = (under_rr[-1], under_fifo[-1])
        disturbed = [run for run in latest if _share(run) > DISTURBED_SHARE]
        if not disturbed:
            break
        for run in disturbed:
            say(f"{run.policy} was disturbed: other programs took {_share(run):.0%} of the CPUs")
        if number + 1 < rounds:
            say("running both once more, in the other order")
    say("comparing what was interrupted with its uninterrupted run")
    for run, uninterrupted in zip(under_rr, under_fifo, strict=True):
        await demo.compare(run, uninterrupted)
    return best_of(under_rr), best_of(under_fifo)


def _share(run: PolicyRun) -> float:
    return run.others_share or 0.0


def best_of(runs: Sequence[PolicyRun]) -> PolicyRun:
    """Return the least disturbed run; what was compared in all of them counts in it."""
    best = min(runs, key=_share)
    best.identical = sum(run.identical for run in runs)
    best.compared = sum(run.compared for run in runs)
    return best
