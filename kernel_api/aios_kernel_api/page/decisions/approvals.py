"""Approvals: what waits for a person, what exactly it would do, and the decision about it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct, structs
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from aios_broker.access.requests import arguments_diff, find_approvals
from aios_broker.contract.access import Approval, ApprovalState
from aios_broker.contract.errors import NotFound
from aios_broker.contract.printable import printable
from aios_kernel_api.bodies import decode
from aios_kernel_api.identity import Caller, caller_of
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.operations import Handler, path_of
from aios_kernel_api.page.forms import Form, changes, shows
from aios_kernel_api.page.html import HEADERS
from aios_kernel_api.page.pages import live_page, page, part_in
from aios_kernel_api.page.parts import Part, address_of
from aios_kernel_api.page.rest import ask
from aios_kernel_api.rest import access
from aios_kernel_api.rest.views import Place

PAGE_LENGTH = 50
MAX_SHOWN_CHARACTERS = 100_000  # of the arguments; all of them have a page of their own
ID_DIGITS = 32
STATES: tuple[str, ...] = (*get_args(ApprovalState), "all")
_ARGUMENTS = msgspec.json.Decoder(dict[str, Any])


class ApprovalListQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which approvals."""

    state: ApprovalState | Literal["all"] = "waiting"
    after: Place | None = None

    def following(self, after: str) -> str:
        """Return the address of the page that goes on behind one."""
        return address_of("/approvals", structs.replace(self, after=after))


class ApprovalId(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which approval."""

    id: Annotated[str, Meta(max_length=ID_DIGITS)]


@dataclass(frozen=True, slots=True)
class DiffLine:
    """One line of a unified diff, and what it says: added, removed, place, or nothing."""

    text: str
    sign: str


async def listed(kernel: Kernel, caller: Caller, query: ApprovalListQuery) -> Mapping[str, object]:
    """Return a page of approvals."""
    wanted = {"limit": str(PAGE_LENGTH), "after": query.after or ""}
    if query.state != "all":
        wanted["state"] = query.state
    return {
        "found": await ask(kernel, caller, access.approvals, query=wanted),
        "decides": await decides(kernel, caller),
    }


async def state(kernel: Kernel, caller: Caller, query: ApprovalId) -> Mapping[str, object]:
    """Return where an approval stands."""
    return {"one": await ask(kernel, caller, access.approval, path={"id": query.id})}


LIST = Part("approvals", "decisions/approvals_table.html", listed, ApprovalListQuery)
STATE = Part("approval", "decisions/approval_state.html", state, ApprovalId)


async def view(request: Request) -> Response:
    """Show what waits, or has waited."""
    may = await decides(kernel_of(request), caller_of(request))
    return await live_page(request, "decisions/approvals.html", LIST, states=STATES, decides=may)


async def view_one(request: Request) -> Response:
    """Show one, with all that a person has to see to decide."""
    kernel, caller = kernel_of(request), caller_of(request)
    found = await _found(request)
    text = arguments_text(found.arguments)
    return await page(
        request,
        "decisions/approval.html",
        one=found,
        state_part=await part_in(request, STATE, ApprovalId(id=found.id)),
        may_decide=found.state == "waiting" and await _may_decide(kernel, caller, found),
        arguments=text[:MAX_SHOWN_CHARACTERS],
        left_out=max(0, len(text) - MAX_SHOWN_CHARACTERS),
        diff=diff_lines(found.diff),
    )


async def view_of_syscall(request: Request) -> Response:
    """Lead to what a parked syscall waits for.

    Raises:
        NotFound: it waits for nobody, or may not be seen.
    """
    syscall_id = path_of(request)["id"]
    async with access.cursor_of(kernel_of(request), caller_of(request)) as cursor:
        found = await find_approvals(cursor, syscall_id, 1)
    if len(syscall_id) != ID_DIGITS or not found:
        raise NotFound("no approval of this syscall is known to you", field="id")
    return RedirectResponse(f"/approvals/{found[0].id}", 303, HEADERS)


async def view_arguments(request: Request) -> Response:
    """Show all arguments, however long, as text in which nothing is hidden."""
    found = await _found(request)
    return Response(json.dumps(found.arguments, indent=2), 200, HEADERS, "text/plain")


async def approve(request: Request, form: Form) -> Response:
    """Let it run once: as it was asked, or with the arguments of the form."""
    body: dict[str, object] = {}
    if "arguments" in form.fields:
        body["arguments"] = read_arguments(form.one("arguments"))
    return await _decided(request, access.approve, body)


async def deny(request: Request, form: Form) -> Response:
    """End it; its caller hears the reason."""
    return await _decided(request, access.deny, {"reason": form.one("reason").strip()})


async def edit(request: Request, form: Form) -> Response:
    """Show what other arguments change; nothing is decided by it."""
    found = await _found(request)
    arguments = read_arguments(form.one("arguments"))
    changed = await arguments_diff(found.arguments, arguments)
    return await page(
        request,
        "decisions/edit.html",
        one=found,
        arguments=arguments_text(arguments),
        diff=diff_lines(changed),
    )


def read_arguments(text: str) -> dict[str, Any]:
    """Return the arguments that a person wrote; raise InvalidSyscall where they are none."""
    return decode(text.encode(errors="surrogatepass"), _ARGUMENTS)


def arguments_text(arguments: Mapping[str, Any]) -> str:
    """Return arguments as JSON that reads well, in which nothing is hidden and which reads back.

    What a page would not show, or would obey, stands there as JSON's own escapes.
    """
    text = msgspec.json.format(msgspec.json.encode(arguments)).decode()
    if len(text) > MAX_SHOWN_CHARACTERS:  # what cannot be read in full is at least exact
        return json.dumps(arguments, indent=2)
    return "".join(one if printable(one) == one else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def diff_lines(diff: str) -> Sequence[DiffLine]:
    """Return the lines of a unified diff."""
    return [DiffLine(line, _sign(line)) for line in diff.split("\n")]


def _sign(line: str) -> str:
    if line.startswith(("+++", "---", "@@")):
        return "place"
    return {"+": "added", "-": "removed"}.get(line[:1], "same")


async def _found(request: Request) -> Approval:
    return await ask(kernel_of(request), caller_of(request), access.approval, path=path_of(request))


async def _decided(request: Request, handler: Handler, body: Mapping[str, object]) -> Response:
    path = path_of(request)
    await ask(kernel_of(request), caller_of(request), handler, body=body, path=path)
    return RedirectResponse(f"/approvals/{path['id']}", 303, HEADERS)


async def _may_decide(kernel: Kernel, caller: Caller, found: Approval) -> bool:
    """Tell whether a form is shown; whether it really may, the decision itself asks."""
    if (found.tenant, found.agent) == (caller.tenant, caller.agent):
        return False
    return await decides(kernel, caller)


async def decides(kernel: Kernel, caller: Caller) -> bool:
    """Tell whether who looks decides for others at all."""
    if caller.scope == "operator":
        return True
    known = await ask(kernel, caller, access.agents, query={"agent": caller.agent})
    return any(one.decides for one in known.items)


ROUTES = [
    shows("/approvals", view),
    shows("/approvals/{id}", view_one),
    shows("/approvals/of/{id}", view_of_syscall),
    shows("/approvals/{id}/arguments", view_arguments),
    changes("/approvals/{id}/approve", approve),
    changes("/approvals/{id}/deny", deny),
    changes("/approvals/{id}/edit", edit),
]
