"""Quotas and policies: what holds now, within which ranges it may be set, and setting it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from msgspec import Struct, inspect

from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.queues.quota import LIMIT_NAMES, LimitName
from aios_broker.queues.records import PolicyRow
from aios_broker.views.settings import POLICIES, SUSPENDED_FOR
from aios_kernel_api.identity import Caller
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.page.rest import ask
from aios_kernel_api.rest import settings
from aios_kernel_api.rest.settings import PolicyChange, QuotaLine, QuotaSetting

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


@dataclass(frozen=True, slots=True)
class Range:
    """What a number of a form may be."""

    least: float | None
    most: float | None
    is_whole: bool


@dataclass(frozen=True, slots=True)
class PolicyPage:
    """The policies that are in force, what there is to choose, and the ranges."""

    policies: Mapping[Module, PolicyRow]
    choices: Mapping[str, str]
    suspended_for: Mapping[str, str]
    ranges: Mapping[str, Range]


@dataclass(frozen=True, slots=True)
class QuotaPage:
    """The quotas that hold, and what may be set."""

    quotas: Sequence[QuotaLine]
    limits: Mapping[LimitName, str]
    ranges: Mapping[str, Range]
    modules: Sequence[Module] = MODULES


async def policy(kernel: Kernel, caller: Caller) -> PolicyPage:
    """Return the policies that are in force."""
    found = await ask(kernel, caller, settings.policy)
    return PolicyPage(found, POLICIES, SUSPENDED_FOR, ranges(PolicyChange))


async def change_policy(kernel: Kernel, caller: Caller, form: Mapping[str, str]) -> str:
    """Change the policy of a module, or of all; return what was done, in words."""
    query = {"module": form.get("module", "")}
    names = ("name", "quantum_s", "quantum_tokens", "unserved_core")
    body = {name: form[name] for name in names if form.get(name)}
    changed = await ask(kernel, caller, settings.change_policy, query=query, body=body)
    return "; ".join(f"{module}: {row.name}" for module, row in changed.items())


async def quotas(kernel: Kernel, caller: Caller) -> QuotaPage:
    """Return the quotas that hold for who looks; for an operator all."""
    found = await ask(kernel, caller, settings.quotas)
    return QuotaPage(found.items, LIMITS, ranges(QuotaSetting))


async def set_quota(kernel: Kernel, caller: Caller, form: Mapping[str, str]) -> str:
    """Give an agent or a tenant these limits and no others; return what was done, in words."""
    names = ("module", "tenant", "agent", "currency", *LIMIT_NAMES)
    body = {name: form[name].strip() for name in names if form.get(name, "").strip()}
    line = await ask(kernel, caller, settings.set_quota, body=body)
    return f"{line.module}: the limits of {line.quota.subject.words} are set"


async def unset_quota(kernel: Kernel, caller: Caller, form: Mapping[str, str]) -> str:
    """Take the limits of an agent or a tenant away; return what was done, in words."""
    query = {name: form.get(name, "") for name in ("module", "tenant", "agent")}
    done = await ask(kernel, caller, settings.unset_quota, query=query)
    return "its limits are gone" if done.changed else "it had no limits"


@cache
def ranges(kind: type[Struct]) -> Mapping[str, Range]:
    """Return the range of each number that a request may have, as the API reads it."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    found = {}
    for field in info.fields:
        one = _number(field.type)
        if one is not None:
            found[field.encode_name] = one
    return found


def _number(kind: inspect.Type) -> Range | None:
    parts = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    for part in parts:
        inner = part.type if isinstance(part, inspect.Metadata) else part
        if isinstance(inner, inspect.IntType | inspect.FloatType):
            return Range(inner.ge, inner.le, isinstance(inner, inspect.IntType))
    return None
