"""The embedding model of the state modules."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aios_workers.config import WorkerConfig
from aios_workers.state_ground import Embedder, KernelCalls


@asynccontextmanager
async def open_embedder(config: WorkerConfig, calls: KernelCalls) -> AsyncIterator[Embedder]:
    """Load the model that the settings name."""
    raise NotImplementedError
    yield
