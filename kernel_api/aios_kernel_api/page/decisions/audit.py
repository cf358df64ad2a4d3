"""The audit log: who did what, and whether the log is what was written."""

from collections.abc import Mapping
from dataclasses import dataclass

from aios_broker.access.audit import AuditVerdict
from aios_broker.contract.access import AuditEntry
from aios_kernel_api.identity import Caller
from aios_kernel_api.kernel import Kernel
from aios_kernel_api.page.rest import ask
from aios_kernel_api.rest import access
from aios_kernel_api.rest.views import Page

PAGE_LENGTH = 100


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Lines of the audit log, newest first; with the verdict where it was verified."""

    lines: Page[AuditEntry]
    verdict: AuditVerdict | None = None


async def audit(kernel: Kernel, caller: Caller, query: Mapping[str, str]) -> AuditPage:
    """Return a page of lines."""
    wanted = {name: query.get(name, "") for name in ("tenant", "agent", "after")}
    return AuditPage(
        await ask(kernel, caller, access.audit, query={**wanted, "limit": str(PAGE_LENGTH)})
    )


async def verify(kernel: Kernel, caller: Caller) -> AuditPage:
    """Walk the chain of hashes; return what was found, with the newest lines."""
    verdict = await ask(kernel, caller, access.verify_audit)
    return AuditPage((await audit(kernel, caller, {})).lines, verdict)
