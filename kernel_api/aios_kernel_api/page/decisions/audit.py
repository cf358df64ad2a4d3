"""The audit log: who did what, and whether the log is what was written."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from aios_kernel_api.identity import Caller, caller_of
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.page.decisions.agents import AccessQuery
from aios_kernel_api.page.forms import Form, changes, shows
from aios_kernel_api.page.pages import live_page
from aios_kernel_api.page.parts import Part
from aios_kernel_api.page.rest import ask
from aios_kernel_api.rest import access

PAGE_LENGTH = 100


async def lines(kernel: Kernel, caller: Caller, query: AccessQuery) -> Mapping[str, object]:
    """Return a page of lines, the newest first."""
    wanted = {"tenant": query.tenant, "agent": query.agent, "after": query.after}
    given = {name: value for name, value in wanted.items() if value is not None}
    return {
        "found": await ask(kernel, caller, access.audit, query={**given, "limit": str(PAGE_LENGTH)})
    }


PART = Part("audit", "decisions/audit_table.html", lines, AccessQuery)


async def view(request: Request) -> Response:
    """Show it."""
    return await live_page(request, "decisions/audit.html", PART, verdict=None)


async def verify(request: Request, _form: Form) -> Response:
    """Walk the chain of hashes, and show what was found."""
    verdict = await ask(kernel_of(request), caller_of(request), access.verify_audit)
    return await live_page(request, "decisions/audit.html", PART, verdict=verdict)


ROUTES = [shows("/audit", view), changes("/audit/verify", verify)]
