"""Tools and exec sessions: which there are, what runs of them, and what failed lately.

They are called, opened and closed by syscalls (`tool.call`, `exec.open` ...): nothing here does.
"""

from msgspec import structs

from aios_broker.contract.errors import UnknownTool
from aios_broker.contract.tools import ToolName
from aios_broker.views.tools import SessionView, ToolReader, ToolView
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.operations import Answer, Asked, Operation, route_of
from aios_kernel_api.rest.views import OwnerQuery, Page, page_of, whose_of


class ToolQuery(OwnerQuery, frozen=True, kw_only=True):
    """Which tools, and whose calls of them."""

    tool: ToolName | None = None  # this one alone, with the schema of its parameters


async def tools(asked: Asked[ToolQuery, None]) -> Page[ToolView]:
    """Return tools."""
    query = asked.query
    whose = whose_of(asked.caller, query.tenant, query.agent)
    found = await _reader(asked.kernel).tools(whose)
    if query.tool is not None:
        one = [view for view in found if view.card.name == query.tool]
        if not one:
            raise UnknownTool(
                f"there is no tool {query.tool!r}", field="tool", remedy="GET /v1/tools lists all"
            )
        return Page(one)
    named = [view.card.name for view in found]
    page = page_of(found, named, query)
    short = [
        structs.replace(view, card=structs.replace(view.card, parameters={})) for view in page.items
    ]
    return structs.replace(page, items=short)


async def sessions(asked: Asked[OwnerQuery, None]) -> Page[SessionView]:
    """Return exec sessions."""
    query = asked.query
    whose = whose_of(asked.caller, query.tenant, query.agent)
    found = sorted(await _reader(asked.kernel).sessions(whose), key=_place)
    return page_of(found, [_place(view) for view in found], query)


def _place(view: SessionView) -> str:
    """Return the name of a place in the list: by agent, oldest first."""
    return f"{view.tenant}/{view.agent} {view.session.opened_at:017.6f} {view.session.id}"


def _reader(kernel: Kernel) -> ToolReader:
    return ToolReader(kernel.functions, kernel.keys)


OPERATIONS = (
    (
        Operation(
            method="GET",
            path="/v1/tools",
            tag="What runs",
            words="List tools, with your calls of them that run, and the last that failed",
            more="How many places at a tool others have only the operator is told. `tool`: this "
            "one alone, with the schema of its parameters.",
            scope="agent",
            query=ToolQuery,
            answers={200: Answer(words="Tools, by name", kind=Page[ToolView])},
            errors=(404,),
        ),
        tools,
    ),
    (
        Operation(
            method="GET",
            path="/v1/exec-sessions",
            tag="What runs",
            words="List exec sessions",
            more="Those that were lost within the last hour say why.",
            scope="agent",
            query=OwnerQuery,
            answers={200: Answer(words="Sessions, by agent, oldest first", kind=Page[SessionView])},
            errors=(404,),
        ),
        sessions,
    ),
)
ROUTES = [route_of(operation, handler) for operation, handler in OPERATIONS]
