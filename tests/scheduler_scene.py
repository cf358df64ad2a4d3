"""A scheduler in the loop of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aios_broker.scheduler.config import SchedulerConfig
from aios_broker.scheduler.scheduler import Scheduler


@asynccontextmanager
async def scheduler(redis_url: str, **settings: object) -> AsyncIterator[None]:
    """Run a scheduler in this loop for the length of a block."""
    variables = {"AIOS_REDIS_URL": redis_url}
    variables |= {name.upper(): str(value) for name, value in settings.items()}
    serving = asyncio.create_task(Scheduler(SchedulerConfig.from_environment(variables)).run())
    try:
        yield
    finally:
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
