"""Of which tenant an agent is meant that an operator names alone: names are of one tenant each."""

from collections.abc import Sequence

from aios_broker.contract.errors import InvalidRequest
from aios_broker.views.counters import OwnerFilter
from aios_kernel_api.identity import Caller
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.rest.views import whose_of

_MOST_NAMED = 20
_TENANTS = """
    SELECT t.name FROM agent a JOIN tenant t ON t.id = a.tenant_id
     WHERE a.name = %s ORDER BY t.name LIMIT %s
"""


async def whose_programs(
    kernel: Kernel, caller: Caller, tenant: str | None, agent: str | None
) -> OwnerFilter:
    """Return whose programs are shown; of a name that several tenants have, those of each.

    Raises:
        UnknownAgent: of somebody whom the caller may not know of.
    """
    if not _is_ambiguous(caller, tenant, agent):
        return whose_of(caller, tenant, agent)
    found = await _tenants_with(kernel, agent)
    return OwnerFilter(found[0] if len(found) == 1 else None, agent)


async def meant_tenant(
    kernel: Kernel, caller: Caller, tenant: str | None, agent: str | None
) -> str | None:
    """Return the tenant that is meant.

    Raises:
        InvalidRequest: several tenants have an agent of the name.
    """
    if not _is_ambiguous(caller, tenant, agent):
        return tenant
    found = await _tenants_with(kernel, agent)
    if len(found) > 1:
        raise InvalidRequest(
            f"several tenants have an agent {agent!r}: {', '.join(found)}",
            field="query.tenant",
            remedy="go back and name the tenant, too",
        )
    return found[0] if found else None


def _is_ambiguous(caller: Caller, tenant: str | None, agent: str | None) -> bool:
    return caller.scope == "operator" and agent is not None and tenant is None


async def _tenants_with(kernel: Kernel, agent: str | None) -> Sequence[str]:
    if kernel.store is None:
        return ()
    async with kernel.store.as_steward() as cursor:
        await cursor.execute(_TENANTS, (agent, _MOST_NAMED))
        return [row.name for row in await cursor.fetchall()]
