"""What is done to many programs at once: asked about with the count first, then done.

POST /programs/cancel    end all that is alive of them
POST /programs/retry     run again what has failed of them lately
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aios_broker.contract.errors import Cancelled, InvalidRequest
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.ledger.programs import LOOKED_AT, failed_syscalls
from aios_broker.queues.quota import Subject
from aios_broker.views.programs import Key
from aios_kernel_api.identity import Caller, caller_of
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.page.forms import Form, changes
from aios_kernel_api.page.pages import page
from aios_kernel_api.rest.views import whose_of

NAMES_OF_A_PROGRAM = 3
Calls = Mapping[Module, Sequence[str]]  # their ids
Counts = Counter[str]  # what became of how many, by the kernel's word


@dataclass(frozen=True, slots=True)
class Found:
    """The syscalls that it concerns."""

    calls: Calls
    looked_back_to: datetime | None = None  # earlier ones were not looked at; None: all were

    @property
    def count(self) -> int:
        """How many they are."""
        return sum(map(len, self.calls.values()))


@dataclass(frozen=True, slots=True)
class Bulk:
    """One thing that is done to many programs."""

    path: str
    verb: str
    done: str
    warning: str
    words: Mapping[str, str]  # why it was not done, by the kernel's word
    find: Callable[[Kernel, Sequence[Key]], Awaitable[Found]]
    do: Callable[[Kernel, Caller, Calls], Awaitable[Counts]]

    def route(self) -> Route:
        """Return the route of its form."""

        async def asked(request: Request, form: Form) -> Response:
            kernel, caller = kernel_of(request), caller_of(request)
            names = list(dict.fromkeys(each for each in form.all("program") if each))
            found = await self.find(kernel, _keys(caller, names))
            back = form.one("back")
            back = back if back.startswith("/?") else "/"
            became = None
            if form.one("confirm") == "yes":
                became = await self.do(kernel, caller, found.calls)
            return await page(
                request,
                "bulk.html",
                bulk=self,
                names=names,
                found=found,
                looked_at=LOOKED_AT,
                back=back,
                became=became,
            )

        return changes(self.path, asked)


def _keys(caller: Caller, names: Iterable[str]) -> Sequence[Key]:
    """Return the programs; raise UnknownAgent where one is not the caller's to see."""
    keys = []
    for name in names:
        parts = name.split(" ")
        if len(parts) != NAMES_OF_A_PROGRAM:
            raise InvalidRequest(
                "it is no program's name", field="program", remedy="tick programs of the list"
            )
        tenant, agent, program = parts
        whose_of(caller, tenant, agent)
        keys.append((tenant, agent, program))
    return keys


async def _alive(kernel: Kernel, keys: Sequence[Key]) -> Found:
    subjects = [Subject.of_program(program, agent, tenant) for tenant, agent, program in keys]
    return Found({each: await kernel.control.all_owned(subjects, each) for each in MODULES})


async def _cancel(kernel: Kernel, caller: Caller, calls: Calls) -> Counts:
    reason = Cancelled(f"{caller.agent} cancelled its program on the page")
    became: Counts = Counter()
    for module, ids in calls.items():
        became.update(await kernel.control.cancel(ids, reason, module=module))
    return became


async def _failed(kernel: Kernel, keys: Sequence[Key]) -> Found:
    wanted = frozenset(keys)
    found: dict[Module, list[str]] = {module: [] for module in MODULES}
    failed = await failed_syscalls(kernel.needed_database)
    for one in failed.found:
        if one.key in wanted:
            found[one.module].append(one.job_id)
    return Found(found, failed.looked_back_to)


async def _retry(kernel: Kernel, _caller: Caller, calls: Calls) -> Counts:
    became: Counts = Counter()
    for module, ids in calls.items():
        became.update(await kernel.control.retry(ids, module=module))
    return became


CANCEL = Bulk(
    "/programs/cancel",
    "Cancel",
    "cancelled",
    "They end, waiting or running; who waits for them is told. What they have done already stays.",
    {"ended": "had ended meanwhile", "unknown": "had ended, and are forgotten"},
    _alive,
    _cancel,
)
RETRY = Bulk(
    "/programs/retry",
    "Run again",
    "submitted again",
    "They have failed lately. Each runs from its beginning, under its own id, with a new deadline "
    "of ten minutes; what it has done already stays, and what needs a person's approval is asked "
    "anew. Whoever was told of the failure hears the new reply only by asking for that id. A "
    "failed syscall is kept for an hour: of older ones what they asked for is gone.",
    {
        "alive": "run or wait again already",
        "ended": "have not failed, the last time that they ran",
        "unknown": "are not kept any more: a failed syscall is kept for an hour",
        "bodiless": "are not kept in full any more: so many have failed since",
        "full": "have no room in the queue",
        "unread": "are an agent's that does not read its replies",
        "core": "name a core that is not known any more",
        "unserved": "name a core that no worker serves",
        "quota": "are more than a quota of their agent or tenant allows to wait",
        "stopped": "are of an agent or a tenant that is suspended",
        "nice": "may not go before others any more",
    },
    _failed,
    _retry,
)
ROUTES = [CANCEL.route(), RETRY.route()]
