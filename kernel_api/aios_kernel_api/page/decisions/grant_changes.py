"""Groups and grants, changed by a syscall of who looks.

So who may change them, and what a person has to approve, is as for agents everywhere.

POST /groups              make one
POST /groups/delete       delete one, with all grants to it
POST /groups/members      put an agent in, or change its role
POST /groups/members/remove
POST /grants              let an agent or a group do something with an object
POST /grants/revoke       take that back
"""

from collections.abc import Callable, Mapping
from typing import get_args

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from aios_broker.contract.access import (
    AccessBody,
    AccessGrant,
    AccessGroupAdd,
    AccessGroupCreate,
    AccessGroupDelete,
    AccessGroupRemove,
    AccessRevoke,
    GroupRole,
    ObjectKind,
)
from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.names import Verb
from aios_kernel_api.calls import done_or_parked
from aios_kernel_api.identity import caller_of
from aios_kernel_api.kernel import kernel_of
from aios_kernel_api.page.forms import Form, changes
from aios_kernel_api.page.html import HEADERS
from aios_kernel_api.page.rest import read_body

DAY_S = 86_400
ROLES: tuple[GroupRole, ...] = get_args(GroupRole)
VERBS: tuple[Verb, ...] = get_args(Verb)
OBJECT_KINDS: tuple[ObjectKind, ...] = get_args(ObjectKind)
_MEMBER = ("group", "agent", "role")


def _asks(
    path: str,
    kind: type[AccessBody],
    read: Callable[[Form], Mapping[str, object]],
) -> Route:
    """Return the route of a form that asks for a change."""

    async def asked(request: Request, form: Form) -> Response:
        body = read_body({"type": kind.__struct_config__.tag, **read(form)}, kind)
        parked = await done_or_parked(kernel_of(request), caller_of(request), body)
        back = "/groups" if path.startswith("/groups") else "/grants"
        return RedirectResponse(f"/approvals/of/{parked}" if parked else back, 303, HEADERS)

    return changes(path, asked)


def _member(form: Form) -> Mapping[str, object]:
    return _given(form, _MEMBER)


def _group(form: Form) -> Mapping[str, object]:
    return _given(form, ("group",))


def _revoked(form: Form) -> Mapping[str, object]:
    return {"object": _given(form, ("kind", "name", "owner")), **_given(form, ("agent", "group"))}


def _granted(form: Form) -> Mapping[str, object]:
    given = {**_revoked(form), "verbs": [verb for verb in form.all("verbs") if verb]}
    days = form.one("days").strip()
    if not days:
        return given
    if not days.isdecimal():
        raise InvalidSyscall("it is no number of days", field="days", remedy="such as 30")
    return {**given, "ttl_s": float(days) * DAY_S}


def _given(form: Form, names: tuple[str, ...]) -> dict[str, object]:
    """Return what stands in some fields; what is empty is not given."""
    return {name: text for name in names if (text := form.one(name).strip())}


ROUTES = [
    _asks("/groups", AccessGroupCreate, _group),
    _asks("/groups/delete", AccessGroupDelete, _group),
    _asks("/groups/members", AccessGroupAdd, _member),
    _asks("/groups/members/remove", AccessGroupRemove, _member),
    _asks("/grants", AccessGrant, _granted),
    _asks("/grants/revoke", AccessRevoke, _revoked),
]
