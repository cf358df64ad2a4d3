"""The errors of who asks for a core that there is not, or that nobody serves."""

from collections.abc import Sequence

from aios_broker.contract.errors import UnknownCore


def unknown_core(name: str, cores: Sequence[bytes]) -> UnknownCore:
    """Return the error of a name that is nobody's; `cores`: those that are known."""
    known = ", ".join(sorted(core.decode() for core in cores)) or "none"
    return UnknownCore(
        f"no core, alias or model is named {name!r}",
        field="body.core",
        remedy=f"leave it out, or use one of: {known}",
    )


def unserved_core(core: str, silent_s: float) -> UnknownCore:
    """Return the error of a core that waits for its worker, where the policy refuses such."""
    return UnknownCore(
        f"no worker serves the core {core!r}, for {silent_s:.0f} s now: by the policy such "
        "syscalls are refused",
        field="body.core",
        remedy="name another core, or have an operator start its worker or let syscalls wait "
        "(`aios policy --unserved wait`)",
    )
