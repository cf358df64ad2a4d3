"""What was opened before a `fork()` belongs to the parent: its sockets, its loop, its replies."""

from __future__ import annotations

import os

from aios_broker.contract.errors import ForkedAgent

_forks = 0  # between this process and the one that first imported this


def _forked() -> None:
    global _forks  # noqa: PLW0603  of the process, as what it counts
    _forks += 1


os.register_at_fork(after_in_child=_forked)


def count() -> int:
    """Return what tells this process from those that it was forked from."""
    return _forks


def require_same(opened: int) -> None:
    """Do nothing in the process where `count` was `opened`.

    Raises:
        ForkedAgent: this is a child of it.
    """
    if opened != _forks:
        raise ForkedAgent(
            "it was opened in the process that this one was forked from",
            remedy="open an agent in the child; the parent's goes on undisturbed",
        )
