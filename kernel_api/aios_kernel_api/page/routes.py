"""All routes and parts of the page: each view's module has its own list."""

from aios_kernel_api.page import bulk, fleet, head, live, login, programs, static, tools
from aios_kernel_api.page.decisions import (
    agents,
    approvals,
    audit,
    bulk_decisions,
    grant_changes,
    settings,
)
from aios_kernel_api.page.parts import Parts
from aios_kernel_api.page.runs import program, slots, trace_file

PARTS = {
    part.name: part
    for part in (
        head.PART,
        programs.PART,
        fleet.PART,
        approvals.LIST,
        approvals.STATE,
        audit.PART,
        program.PART,
        tools.LIST,
        tools.ONE,
    )
}
ROUTES = (
    *programs.ROUTES,
    *bulk.ROUTES,
    *fleet.ROUTES,
    *bulk_decisions.ROUTES,
    *approvals.ROUTES,
    *agents.ROUTES,
    *grant_changes.ROUTES,
    *settings.ROUTES,
    *audit.ROUTES,
    *program.ROUTES,
    *trace_file.ROUTES,
    *slots.ROUTES,
    *tools.ROUTES,
    *live.ROUTES,
    *login.ROUTES,
)
PUBLIC_ROUTES = (*login.PUBLIC_ROUTES, *static.ROUTES)


def new_parts() -> Parts:
    """Return what makes the parts for one process."""
    return Parts(PARTS)
