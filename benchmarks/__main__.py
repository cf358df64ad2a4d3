"""`python -m benchmarks`: what `./aios bench` runs, each measurement a command of its own."""

from aios_cli.main import Entry, LazyGroup

bench = LazyGroup(
    "bench",
    {
        "queues": Entry("benchmarks.queues.command:queues", "Against other job queues."),
        "scale": Entry("benchmarks.scale.command:scale", "Many agents, a long queue."),
        "chaos": Entry("benchmarks.chaos.command:chaos", "Kill everything, lose nothing."),
    },
    help_text="""Measure this checkout; figures with machine, date and commit.

    \b
    Examples:
      aios bench queues --quick           a first look, under a minute
      aios bench queues --json out.json   all peers, all loads, ten minutes
    """,
)

if __name__ == "__main__":
    bench(prog_name="aios bench")
