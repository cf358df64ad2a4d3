"""Which syscalls to ask the kernel for, when it has been silent about them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from aios_broker.client.pending import Pending

MOST_DOUBLINGS = 16


def to_ask_for(
    known: Iterable[Pending], at_s: float, *, recheck_s: float, longest_s: float
) -> list[Pending]:
    """Return those whose time has come: each twice as long after the last time as before.

    So what thousands of waiting syscalls cost is little. Where none is due, the one that was
    silent longest stands for all: if the kernel has forgotten it, it may have forgotten the rest.
    """
    silent = [pending for pending in known if at_s - pending.heard_at_s >= recheck_s]
    due = [
        pending
        for pending in silent
        if at_s - pending.heard_at_s
        >= min(recheck_s * 2 ** min(pending.asks, MOST_DOUBLINGS), longest_s)
    ]
    if silent and not due:
        due = [min(silent, key=lambda pending: pending.heard_at_s)]
    for pending in due:
        pending.asks += 1
    return due
