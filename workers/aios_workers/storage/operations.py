"""The operations of the storage module, by the body that asks for each."""

from __future__ import annotations

from aios_workers.config import WorkerConfig
from aios_workers.state_ground import StateGround
from aios_workers.state_handler import Operations


def storage_operations(ground: StateGround, config: WorkerConfig) -> Operations:
    """Return what the module can do."""
    return {}
