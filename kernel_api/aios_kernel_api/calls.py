"""A route's own syscall: asked in the caller's name, and waited for."""

from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Body, Syscall, new_id
from aios_kernel_api.identity import Caller, require_agent
from aios_kernel_api.kernel import Kernel

WAIT_S = 60.0


async def call(
    kernel: Kernel, caller: Caller, body: Body, *, key: str | None = None, wait_s: float = WAIT_S
) -> Result:
    """Return what a syscall of the caller's comes to.

    Raises:
        AccessDenied: an operator asks: it is no agent.
        KernelError: the error of the syscall.
        WaitTimeout: it has not ended in time; it goes on, and its id is in the error.
    """
    owner = require_agent(caller)
    asked = Syscall(
        new_id(),
        owner.agent,
        body,
        tenant=owner.tenant,
        token=caller.token,
        traceparent=caller.traceparent,
    )
    pending = kernel.session.submit(kernel.session.identified(asked, key))
    with kernel.holding(pending):
        return (await pending.reply_within(wait_s)).unwrap()
