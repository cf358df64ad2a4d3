"""Quotas and policies: what holds now, within which ranges it may be set, and setting it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from msgspec import Struct, inspect
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.queues.quota import LIMIT_NAMES, LimitName
from aios_broker.views.settings import POLICIES, SUSPENDED_FOR
from aios_kernel_api.identity import caller_of
from aios_kernel_api.kernel import kernel_of
from aios_kernel_api.page.forms import Form, changes, shows
from aios_kernel_api.page.html import HEADERS
from aios_kernel_api.page.pages import page
from aios_kernel_api.page.parts import address_of, query_from
from aios_kernel_api.page.rest import ask
from aios_kernel_api.rest import settings
from aios_kernel_api.rest.settings import PolicyChange, QuotaSetting
from aios_kernel_api.rest.views import Place

LIMITS: dict[LimitName, str] = {
    "max_queued": "Syscalls that wait",
    "max_running": "Syscalls that run",
    "tokens_per_minute": "Tokens per minute",
    "slot_seconds_per_minute": "Slot-seconds per minute",
    "budget_per_day": "Budget per day",
    "budget_per_month": "Budget per month",
    "min_nice": "Least nice value",
    "max_contexts": "Stored contexts",
    "max_context_bytes": "Bytes of contexts",
    "max_unread": "Unread replies",
}
PAGE_LENGTH = 100
NO_LIMIT = 2**31  # so many tokens no generation has
POLICY_FIELDS = ("name", "quantum_s", "quantum_tokens", "unserved_core")


@dataclass(frozen=True, slots=True)
class Range:
    """What a number of a form may be; None: without a limit."""

    least: float | None
    most: float | None
    is_whole: bool


class PolicyViewQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Of which module the policy was changed just now."""

    changed: Module | None = None


class QuotaListQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Which page of the quotas."""

    after: Place | None = None


async def view_policy(request: Request) -> Response:
    """Show the policies that are in force, what there is to choose, and the ranges."""
    query = query_from(dict(request.query_params), PolicyViewQuery)
    return await page(
        request,
        "decisions/policy.html",
        policies=await ask(kernel_of(request), caller_of(request), settings.policy),
        choices=POLICIES,
        suspended_for=SUSPENDED_FOR,
        ranges=ranges(PolicyChange),
        no_limit=NO_LIMIT,
        changed=query.changed,
    )


async def change_policy(request: Request, form: Form) -> Response:
    """Change the policy of a module."""
    await ask(
        kernel_of(request),
        caller_of(request),
        settings.change_policy,
        query={"module": form.one("module")},
        body=_given(form, POLICY_FIELDS),
    )
    changed = query_from({"changed": form.one("module")}, PolicyViewQuery)
    return RedirectResponse(address_of("/policy", changed), 303, HEADERS)


async def view_quotas(request: Request) -> Response:
    """Show the quotas that hold for who looks, for an operator all, and what may be set."""
    query = query_from(dict(request.query_params), QuotaListQuery)
    wanted = {"limit": str(PAGE_LENGTH), "after": query.after or ""}
    found = await ask(kernel_of(request), caller_of(request), settings.quotas, query=wanted)
    return await page(
        request,
        "decisions/quotas.html",
        quotas=found.items,
        further=None if found.next is None else address_of("/quotas", QuotaListQuery(found.next)),
        limits=LIMITS,
        ranges=ranges(QuotaSetting),
        modules=MODULES,
    )


async def set_quota(request: Request, form: Form) -> Response:
    """Give an agent or a tenant these limits and no others."""
    body = _given(form, ("module", "tenant", "agent", "currency", *LIMIT_NAMES))
    await ask(kernel_of(request), caller_of(request), settings.set_quota, body=body)
    return RedirectResponse("/quotas", 303, HEADERS)


async def unset_quota(request: Request, form: Form) -> Response:
    """Take the limits of an agent or a tenant away."""
    query = _given(form, ("module", "tenant", "agent"))
    await ask(kernel_of(request), caller_of(request), settings.unset_quota, query=query)
    return RedirectResponse("/quotas", 303, HEADERS)


def _given(form: Form, names: tuple[str, ...]) -> dict[str, str]:
    """Return what stands in some fields; what is empty is not given."""
    return {name: text for name in names if (text := form.one(name).strip())}


@cache
def ranges(kind: type[Struct]) -> Mapping[str, Range]:
    """Return the range of each number that a request may have, as the API reads it."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    found = {field.name: _number(field.type) for field in info.fields}
    return {name: one for name, one in found.items() if one is not None}


def _number(kind: inspect.Type) -> Range | None:
    for part in kind.types if isinstance(kind, inspect.UnionType) else (kind,):
        inner = part.type if isinstance(part, inspect.Metadata) else part
        if isinstance(inner, inspect.IntType | inspect.FloatType):
            return Range(inner.ge, inner.le, isinstance(inner, inspect.IntType))
    return None


ROUTES = [
    shows("/policy", view_policy),
    changes("/policy", change_policy),
    shows("/quotas", view_quotas),
    changes("/quotas", set_quota),
    changes("/quotas/remove", unset_quota),
]
