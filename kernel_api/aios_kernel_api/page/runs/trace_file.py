"""A program as a file for Perfetto: where each of its syscalls waited and ran.

    GET /program/trace?tenant=&agent=&program=

What `aios export trace` writes, of the newest syscalls: names and numbers, nothing that was said.
"""

import asyncio

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from aios_broker.contract.errors import NotFound
from aios_broker.contract.names import Name
from aios_broker.ledger.history import History
from aios_broker.ledger.lives import lives_of
from aios_broker.ledger.runs import Run, RunFilter, Runs
from aios_broker.views.trace import encoded_trace
from aios_kernel_api.identity import caller_of
from aios_kernel_api.kernel import kernel_of
from aios_kernel_api.large_work import PIECE_BYTES
from aios_kernel_api.page.forms import shows
from aios_kernel_api.page.html import HEADERS
from aios_kernel_api.page.parts import query_from
from aios_kernel_api.page.runs.program import IN_TRACE, whose_program
from aios_kernel_api.rest.views import Who


class TraceQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of which program."""

    program: Name
    agent: Who | None = None
    tenant: Who | None = None


async def trace(request: Request) -> Response:
    """Return the file.

    Raises:
        NotFound: nothing is known of the program.
    """
    kernel, caller = kernel_of(request), caller_of(request)
    query = query_from(dict(request.query_params), TraceQuery)
    tenant, agent = whose_program(caller, query.tenant, query.agent)
    history = History(kernel.connection, kernel.keys, kernel.database)
    async with kernel.large_work.of(caller.owner) as progress:
        await progress.before(PIECE_BYTES + 1)  # one at a time, however small it may become
        runs = Runs(history, kernel.database, kernel.keys.prefix)
        run = await runs.newest(RunFilter(tenant, agent, query.program), IN_TRACE)
        if not run.events:
            raise NotFound("the ledger has no syscall of this program", field="query.program")
        now_ms = round((await kernel.fleet.now()).timestamp() * 1000)
        data = await asyncio.to_thread(_encoded, run, now_ms)
    headers = {**HEADERS, "content-disposition": 'attachment; filename="trace.json"'}
    return Response(data, 200, headers, "application/json")


def _encoded(run: Run, now_ms: int) -> bytes:
    return encoded_trace(lives_of(run.events), now_ms)


ROUTES = [shows("/program/trace", trace)]
