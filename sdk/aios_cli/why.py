"""`aios why`: the rule and the numbers that keep a syscall where it is."""

from __future__ import annotations

import click
import msgspec

from aios_broker.contract.access import Approval
from aios_broker.contract.errors import KernelError
from aios_broker.queues.admission import Admission
from aios_broker.queues.functions import Functions
from aios_broker.queues.records import JobView
from aios_cli.approvals import kernel_store
from aios_cli.lookup import Ended, find, parse_module
from aios_cli.operator import Operator
from aios_cli.reasons import Explanation, Surroundings, explain, explain_ended
from aios_cli.session import EXIT_CODES, with_kernel
from aios_cli.tables import show_json
from aios_workers.approvals.requests import find_approvals

JOBS_LIMIT = 1000  # of its module; who runs, and the head of those that wait


@click.command(epilog=EXIT_CODES)
@click.argument("syscall_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def why(syscall_id: str, *, as_json: bool) -> None:
    """Say why a syscall waits: which rule keeps it, and the rule's numbers.

    ID may be abbreviated to its first digits, 8 or more. Of one that has ended it says how, for
    as long as the reply is kept (a minute; an hour for one that failed).

    \b
    Examples:
      aios why 3f2a91bc
      aios why 3f2a91bc --json
    """  # noqa: D301 - \b keeps click from wrapping

    async def read(operator: Operator) -> tuple[str, Explanation]:
        found = await find(operator, syscall_id)
        if isinstance(found, Ended):
            return found.job_id, explain_ended(found)
        return found.job_id, explain(found, await surroundings(operator, found))

    job_id, explanation = with_kernel(read, as_json=as_json)
    if as_json:
        show_json({"job_id": job_id, **msgspec.to_builtins(explanation)})
        return
    click.echo(f"{job_id}: {explanation.rule}")
    click.echo(explanation.text)
    if explanation.remedy:
        click.echo(f"Remedy: {explanation.remedy}")
    width = max((len(name) for name in explanation.numbers), default=0)
    for name, value in explanation.numbers.items():
        if value is not None:
            click.echo(f"  {name.ljust(width)}  {value}")


async def surroundings(operator: Operator, job: JobView) -> Surroundings:
    """Read what decides over a job."""
    module = parse_module(job.module)
    admission = Admission(Functions(operator.connection), operator.keys)
    workers = [worker for worker in await operator.fleet.live_workers() if worker.module == module]
    return Surroundings(
        policy=await operator.control.policy(module),
        jobs=await operator.control.jobs(module, limit=JOBS_LIMIT),
        workers=workers,
        fleet_suspended=await operator.fleet.suspended(),
        scheduler=await operator.fleet.leading_scheduler(),
        barrier=None if job.position is None else await admission.barrier(module, job.job_id),
        approval=await approval_of(job.job_id) if job.state == "parked" else None,
    )


async def approval_of(job_id: str) -> Approval | None:
    """Return what a parked syscall waits for; None where no database tells."""
    try:
        store = kernel_store()
    except KernelError:
        return None
    try:
        async with store.as_steward() as cursor:
            found = await find_approvals(cursor, job_id, 1)
    except KernelError:
        return None
    finally:
        await store.aclose()
    return found[0] if found else None
