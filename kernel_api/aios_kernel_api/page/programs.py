"""Programs: where each stands, what it waits for and why, what it has used."""

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct, structs
from starlette.requests import Request
from starlette.responses import Response

from aios_broker.views.programs import ProgramReader, ProgramState, Wanted
from aios_kernel_api.identity import Caller
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.page.forms import shows
from aios_kernel_api.page.owners import whose_programs
from aios_kernel_api.page.pages import live_page
from aios_kernel_api.page.parts import Part, address_of
from aios_kernel_api.rest.views import Who

PAGE_LENGTH = 50
STATES: tuple[ProgramState, ...] = ("parked", "running", "waiting", "held", "failed", "done")
# What an agent is told of why it waits: the numbers name others.
WORDS_OF_RULES = {
    "held": "an operator holds it",
    "parked": "it waits for a person's approval",
    "fleet-suspended": "the fleet is suspended",
    "no-worker": "no worker of its module lives",
    "no-core": "no worker serves its core",
    "program": "the policy admits other programs first",
    "quota": "a quota is used up",
    "rate": "the core's endpoint takes no more at the moment",
    "resource": "what it needs is taken",
    "next": "a worker is about to take it",
    "order": "others go before it",
}


class ProgramQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which programs."""

    state: ProgramState | None = None
    failed: bool = False
    tenant: Who | None = None
    agent: Who | None = None
    program: Annotated[str, Meta(max_length=256)] | None = None
    core: Annotated[str, Meta(max_length=128)] | None = None
    page: Annotated[int, Meta(ge=1, le=10_000)] = 1

    def with_(self, **changed: object) -> str:
        """Return the address of the same view with something changed; from its first page on."""
        return self._address(page=1, **changed)

    def at(self, page: int) -> str:
        """Return the address of another page of the same view."""
        return self._address(page=page)

    def _address(self, **changed: object) -> str:
        return address_of("/", structs.replace(self, **changed))


async def programs(kernel: Kernel, caller: Caller, query: ProgramQuery) -> Mapping[str, object]:
    """Return a page of programs."""
    reader = ProgramReader(kernel.functions, kernel.keys, kernel.database)
    wanted = Wanted(
        await whose_programs(kernel, caller, query.tenant, query.agent),
        query.state,
        query.program,
        query.core,
        query.failed,
    )
    found = await reader.page(wanted, (query.page - 1) * PAGE_LENGTH, PAGE_LENGTH)
    return {
        "found": found,
        "words_of_rules": WORDS_OF_RULES,
        "states": STATES,
        "pages": -(-found.total // PAGE_LENGTH),
    }


async def view(request: Request) -> Response:
    """Show them."""
    return await live_page(request, "programs.html", PART, states=STATES)


PART = Part("programs", "programs_part.html", programs, ProgramQuery)
ROUTES = [shows("/", view)]
