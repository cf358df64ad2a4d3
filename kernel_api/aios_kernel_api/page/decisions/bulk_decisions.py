"""Several approvals decided at once: what all of them would do is summed up first, then it is done.

POST /approvals/decide    approve or deny those that are ticked
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from aios_broker.contract.access import Approval
from aios_broker.contract.errors import InvalidRequest, KernelError
from aios_kernel_api.identity import Caller, caller_of
from aios_kernel_api.kernel import Kernel, kernel_of
from aios_kernel_api.page.forms import Form, changes
from aios_kernel_api.page.pages import page
from aios_kernel_api.page.rest import ask
from aios_kernel_api.problems import told
from aios_kernel_api.rest import access

MOST = 200  # each is decided on its own, and a person has to have read them
VERBS = {"approve": "Approve", "deny": "Deny"}


@dataclass(frozen=True, slots=True)
class Effect:
    """What several approvals would do, together."""

    operations: Mapping[str, int]  # by the class of what they do: delete, overwrite ...
    objects: Sequence[str]  # all that would go, in words
    about: Sequence[str]  # what would change, run, or come instead
    others: int  # that are decided already, or over


@dataclass(slots=True)
class Outcomes:
    """What became of several decisions."""

    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by what was said


async def decide(request: Request, form: Form) -> Response:
    """Show what they would do; once that is confirmed, decide."""
    kernel, caller = kernel_of(request), caller_of(request)
    verb = form.one("decision")
    if verb not in VERBS:
        raise InvalidRequest(
            "it is no decision", field="decision", remedy=f"one of {', '.join(VERBS)}"
        )
    found = await _ticked(kernel, caller, form)
    waiting = [one for one in found if one.state == "waiting"]
    became = None
    if form.one("confirm") == "yes":
        became = await _decided(kernel, caller, waiting, form)
    return await page(
        request,
        "decisions/bulk_decisions.html",
        decision=verb,
        verb=VERBS[verb],
        waiting=waiting,
        sum=summed_up(found),
        reason=form.one("reason").strip(),
        became=became,
    )


def summed_up(found: Sequence[Approval]) -> Effect:
    """Return what those that wait would do, together."""
    waiting = [one for one in found if one.state == "waiting"]
    things = [thing for one in waiting for thing in one.objects]
    return Effect(
        dict(Counter(one.operation for one in waiting).most_common()),
        [thing.words for thing in things if thing.goes],
        [thing.words for thing in things if not thing.goes],
        len(found) - len(waiting),
    )


async def _ticked(kernel: Kernel, caller: Caller, form: Form) -> list[Approval]:
    ids = list(dict.fromkeys(each for each in form.all("approval") if each))
    if len(ids) > MOST:
        raise InvalidRequest(
            f"{len(ids)} approvals at once", field="approval", remedy=f"tick {MOST} at most"
        )
    return [await ask(kernel, caller, access.approval, path={"id": each}) for each in ids]


async def _decided(
    kernel: Kernel, caller: Caller, waiting: Sequence[Approval], form: Form
) -> Outcomes:
    became = Outcomes()
    for one in waiting:
        try:
            if form.one("decision") == "approve":
                await ask(kernel, caller, access.approve, body={}, path={"id": one.id})
            else:
                body = {"reason": form.one("reason").strip()}
                await ask(kernel, caller, access.deny, body=body, path={"id": one.id})
            became.done += 1
        except KernelError as error:  # the others are decided all the same
            became.failed[str(told(error))] += 1
    return became


ROUTES = [changes("/approvals/decide", decide)]
