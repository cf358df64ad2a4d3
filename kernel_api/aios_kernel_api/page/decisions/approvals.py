"""Approvals: what waits for a person, what exactly it would do, and the decision about it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from aios_broker.access.requests import arguments_diff
from aios_broker.contract.access import Approval, ApprovalState
from aios_broker.contract.printable import printable
from aios_kernel_api.bodies import decode
from aios_kernel_api.identity import Caller
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.page.rest import ask
from aios_kernel_api.rest import access

PAGE_LENGTH = 50
MAX_SHOWN_CHARACTERS = 100_000  # of the arguments; all of them have a page of their own
STATES: tuple[ApprovalState, ...] = get_args(ApprovalState)
_ARGUMENTS = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class ApprovalList:
    """A page of approvals in one state, or in any."""

    state: ApprovalState | None
    approvals: Sequence[Approval]
    next: str | None


@dataclass(frozen=True, slots=True)
class DiffLine:
    """One line of a unified diff, and what it says: added, removed, place, or nothing."""

    text: str
    sign: str


@dataclass(frozen=True, slots=True)
class OneApproval:
    """An approval with all that a person has to see to decide."""

    approval: Approval
    may_decide: bool
    arguments: str  # as JSON text, readable; the first of them where there are many
    left_out: int  # characters of the arguments that are not shown
    goes: Sequence[str]  # each thing that would be lost, as it was when it was asked
    diff: Sequence[DiffLine]

    @property
    def is_open(self) -> bool:
        """Whether anything is left to be decided."""
        return self.approval.state == "waiting"

    @property
    def may_edit(self) -> bool:
        """Whether the arguments fit into a form."""
        return not self.left_out


@dataclass(frozen=True, slots=True)
class Edit:
    """Other arguments, and what they change: shown before they are allowed."""

    approval: Approval
    arguments: str
    diff: Sequence[DiffLine]


async def approvals(kernel: Kernel, caller: Caller, query: Mapping[str, str]) -> ApprovalList:
    """Return a page of approvals; those that wait, unless the address says another state."""
    state = query.get("state", "waiting")
    wanted = {"state": "" if state == "all" else state, "after": query.get("after", "")}
    found = await ask(kernel, caller, access.approvals, query={**wanted, "limit": str(PAGE_LENGTH)})
    named = next((each for each in STATES if each == state), None)
    return ApprovalList(named, found.items, found.next)


async def approval(kernel: Kernel, caller: Caller, approval_id: str) -> OneApproval:
    """Return one approval, with all that it would do."""
    found = await ask(kernel, caller, access.approval, path={"id": approval_id})
    text = arguments_text(found.arguments)
    return OneApproval(
        found,
        await _may_decide(kernel, caller, found),
        text[:MAX_SHOWN_CHARACTERS],
        max(0, len(text) - MAX_SHOWN_CHARACTERS),
        [one.words for one in found.objects],
        diff_lines(found.diff),
    )


async def approve(
    kernel: Kernel, caller: Caller, approval_id: str, form: Mapping[str, str]
) -> Approval:
    """Let it run once: as it was asked, or with the arguments of a form."""
    body: dict[str, object] = {}
    if "arguments" in form:
        body["arguments"] = read_arguments(form["arguments"])
    return await ask(kernel, caller, access.approve, body=body, path={"id": approval_id})


async def deny(
    kernel: Kernel, caller: Caller, approval_id: str, form: Mapping[str, str]
) -> Approval:
    """End it; its caller hears the reason."""
    body = {"reason": form.get("reason", "").strip()}
    return await ask(kernel, caller, access.deny, body=body, path={"id": approval_id})


async def edit(kernel: Kernel, caller: Caller, approval_id: str, form: Mapping[str, str]) -> Edit:
    """Return what other arguments change; nothing is decided by it.

    Raises:
        InvalidSyscall: they are no JSON object.
    """
    found = await ask(kernel, caller, access.approval, path={"id": approval_id})
    arguments = read_arguments(form.get("arguments", ""))
    diff = await arguments_diff(found.arguments, arguments)
    return Edit(found, arguments_text(arguments), diff_lines(diff))


def read_arguments(text: str) -> dict[str, Any]:
    """Return the arguments that a person wrote; raise InvalidSyscall where they are no object."""
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
    return {"+": "added", "-": "removed"}.get(line[:1], "")


async def _may_decide(kernel: Kernel, caller: Caller, found: Approval) -> bool:
    """Tell whether a form is shown; whether it really may, the decision itself asks."""
    if caller.scope == "operator":
        return True
    if (found.tenant, found.agent) == (caller.tenant, caller.agent):
        return False
    known = await ask(kernel, caller, access.agents, query={"agent": caller.agent})
    return any(one.decides for one in known.items)
