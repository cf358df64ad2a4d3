"""Tools and exec sessions: what each is, what runs of it; a session is closed by whose it is.

GET  /tools             all of both
GET  /tools/{name}      one tool, with its rules and its schema
POST /sessions/close    end a session, once that was confirmed
"""

from collections.abc import Mapping

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from aios_broker.contract.exec import ExecClose
from aios_broker.contract.tools import ToolName
from aios_broker.views.tools import limits_words
from aios_kernel_api.calls import call
from aios_kernel_api.identity import Caller, caller_of, require_agent
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.operations import path_of
from aios_kernel_api.page.forms import Form, changes, shows
from aios_kernel_api.page.html import HEADERS
from aios_kernel_api.page.owners import meant_tenant
from aios_kernel_api.page.pages import live_page, page, part_in
from aios_kernel_api.page.parts import Part, query_from
from aios_kernel_api.page.rest import ask, read_body
from aios_kernel_api.rest import tools
from aios_kernel_api.rest.views import Who

MOST_SHOWN = 500  # tools, and sessions
CALLS_SHOWN = 3  # of a tool, in the list


class ToolListQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose calls and sessions."""

    tenant: Who | None = None
    agent: Who | None = None


class OneToolQuery(ToolListQuery, frozen=True, kw_only=True):
    """Which tool, and whose calls of it."""

    tool: ToolName


async def read(kernel: Kernel, caller: Caller, query: ToolListQuery) -> Mapping[str, object]:
    """Return tools and sessions."""
    wanted = {**await _whose(kernel, caller, query), "limit": str(MOST_SHOWN)}
    return {
        "tools": await ask(kernel, caller, tools.tools, query=wanted),
        "sessions": await ask(kernel, caller, tools.sessions, query=wanted),
        "now_s": (await kernel.fleet.now()).timestamp(),
        "calls_shown": CALLS_SHOWN,
    }


async def read_one(kernel: Kernel, caller: Caller, query: OneToolQuery) -> Mapping[str, object]:
    """Return one tool."""
    wanted = {**await _whose(kernel, caller, query), "tool": query.tool}
    [one] = (await ask(kernel, caller, tools.tools, query=wanted)).items
    now_s = (await kernel.fleet.now()).timestamp()
    return {"one": one, "now_s": now_s, "may_run": limits_words(one.card.parallel)}


async def _whose(kernel: Kernel, caller: Caller, query: ToolListQuery) -> dict[str, str]:
    tenant = await meant_tenant(kernel, caller, query.tenant, query.agent)
    wanted = {"tenant": tenant, "agent": query.agent}
    return {name: value for name, value in wanted.items() if value is not None}


LIST = Part("tools", "tools/tools_part.html", read, ToolListQuery)
ONE = Part("tool", "tools/tool_part.html", read_one, OneToolQuery)


async def view(request: Request) -> Response:
    """Show all."""
    return await live_page(request, "tools/tools.html", LIST)


async def view_one(request: Request) -> Response:
    """Show one tool.

    Raises:
        UnknownTool: there is none of that name.
    """
    query = query_from({**request.query_params, "tool": path_of(request)["name"]}, OneToolQuery)
    made = await part_in(request, ONE, query)
    return await page(request, "tools/tool.html", part=made, tool=query.tool)


async def close(request: Request, form: Form) -> Response:
    """Ask whether a session is to end; once that is confirmed, end it.

    Raises:
        AccessDenied: an operator asks: it is no agent, and has none.
        UnknownSession: it is not the agent's; `SessionLost`: it is gone.
    """
    kernel, caller = kernel_of(request), caller_of(request)
    require_agent(caller)
    body = read_body({"type": "exec.close", "session": form.one("session")}, ExecClose)
    if form.one("confirm") != "yes":
        return await page(request, "tools/close.html", session=body.session)
    await call(kernel, caller, body)
    return RedirectResponse("/tools", 303, HEADERS)


ROUTES = [
    shows("/tools", view),
    shows("/tools/{name:path}", view_one),
    changes("/sessions/close", close),
]
