"""What tests submit through a client's session: under ids that the agent of each may use."""

from aios_broker.client.pending import Pending
from aios_broker.client.session import Session
from aios_broker.contract.syscall import Syscall


def sent(session: Session, syscall: Syscall, key: str | None = None) -> Pending:
    """Submit a syscall under a fresh id, or under the one of a key."""
    return session.submit(session.identified(syscall, key))
