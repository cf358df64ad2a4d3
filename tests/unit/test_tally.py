"""How long a prompt is: as the kernel counts it, or as the endpoint says that bills it."""

from aios_broker.contract.money import Billed
from aios_broker.queues.records import Lease
from aios_workers.runtime.runs import Tally

LEASE = Lease("0" * 32, 1, b"", True, False, 0, 0, 0, 0, 0, 60, False)


def test_the_kernel_counts_the_prompt_where_no_endpoint_bills_it() -> None:
    tally = Tally("core", None, LEASE)
    tally.prompt(30)

    assert tally.prompt_tokens == 30


def test_an_endpoint_that_bills_says_how_long_the_prompt_was() -> None:
    tally = Tally("core", None, LEASE, bills_requests=True)
    tally.prompt(30)
    assert tally.prompt_tokens == 0  # it has not said anything yet

    tally.step(0, Billed(prompt_tokens=11, output_tokens=2))

    assert tally.prompt_tokens == 11
