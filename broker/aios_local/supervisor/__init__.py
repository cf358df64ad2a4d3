"""Start a whole kernel on one machine, keep its processes alive, and stop them in order."""

from aios_local.supervisor.kernel import EmbeddedKernel
from aios_local.supervisor.programs import Program, kernel_programs
from aios_local.supervisor.record import KernelRecord, ProcessRecord, find_kernel

__all__ = [
    "EmbeddedKernel",
    "KernelRecord",
    "ProcessRecord",
    "Program",
    "find_kernel",
    "kernel_programs",
]
