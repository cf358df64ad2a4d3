"""A route's own syscall: asked in the caller's name, and waited for."""

import time

from aios_broker.client.pending import Pending
from aios_broker.contract.errors import WaitTimeout
from aios_broker.contract.reply import Result
from aios_broker.contract.syscall import Body, Syscall, new_id
from aios_kernel_api.identity import Caller, require_agent
from aios_kernel_api.kernel import Kernel

WAIT_S = 60.0
LOOK_S = 0.25  # so often it is looked whether a person is asked


async def call(
    kernel: Kernel, caller: Caller, body: Body, *, key: str | None = None, wait_s: float = WAIT_S
) -> Result:
    """Return what a syscall of the caller's comes to.

    Raises:
        AccessDenied: an operator asks: it is no agent.
        KernelError: the error of the syscall.
        WaitTimeout: it has not ended in time; it goes on, and its id is in the error.
    """
    pending = _submitted(kernel, caller, body, key)
    with kernel.holding(pending):
        return (await pending.reply_within(wait_s)).unwrap()


async def done_or_parked(kernel: Kernel, caller: Caller, body: Body) -> str | None:
    """Return None once a syscall of the caller's has ended; its id, where it waits for a person.

    Raises:
        As `call` does.
    """
    pending = _submitted(kernel, caller, body, None)
    until_s = time.monotonic() + WAIT_S
    with kernel.holding(pending):
        while True:
            try:
                (await pending.reply_within(LOOK_S)).unwrap()
            except WaitTimeout:
                live = await kernel.control.job(pending.id)
                if live is not None and live.state == "parked":
                    return pending.id
                if time.monotonic() > until_s:
                    raise
            else:
                return None


def _submitted(kernel: Kernel, caller: Caller, body: Body, key: str | None) -> Pending:
    owner = require_agent(caller)
    asked = Syscall(
        new_id(),
        owner.agent,
        body,
        tenant=owner.tenant,
        token=caller.token,
        traceparent=caller.traceparent,
    )
    return kernel.session.submit(kernel.session.identified(asked, key))
