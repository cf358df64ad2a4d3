"""The settings that a command works with: those of the environment, changed by its options."""

import click

from aios_broker.config import KernelConfig, environment
from aios_local.supervisor.record import KernelRecord
from aios_local.supervisor.record import find_kernel as find_kernel_of


def current_config() -> KernelConfig:
    """Return what the `aios` group has read, else what the environment says.

    Raises:
        InvalidConfig: The environment holds a bad or unknown setting.
    """
    context = click.get_current_context(silent=True)
    found = context.find_object(KernelConfig) if context is not None else None
    return found or KernelConfig.from_environment(environment())


def find_kernel() -> KernelRecord:
    """Return the running kernel that this command is meant for.

    Raises:
        KernelNotRunning: There is none.
    """
    return find_kernel_of(current_config())
