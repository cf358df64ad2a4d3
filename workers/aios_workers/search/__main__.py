"""`python -m aios_workers.search`: embed everything anew; what `aios reindex` starts."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

from aios_broker.config import environment
from aios_broker.contract.errors import InvalidConfig, KernelError
from aios_broker.postgres.session import Store
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection
from aios_workers.config import WorkerConfig
from aios_workers.runtime.kernel_calls import SubmittedCalls
from aios_workers.search.embedder import open_embedder
from aios_workers.search.indexing import reindex

NAME = "aios-reindex"
LIMIT_S = 300.0  # of one batch: a core may have a queue before it


async def _run(config: WorkerConfig) -> int:
    if config.database_url is None:
        raise InvalidConfig("is not set", field="AIOS_DATABASE_URL", remedy="set it")
    async with AsyncExitStack() as stack:
        store = Store(config.database_url, name=NAME, limit_s=LIMIT_S)
        stack.push_async_callback(store.aclose)
        connection = Connection(config.redis_url, name=NAME)
        stack.push_async_callback(connection.aclose)
        keys = Keys(config.key_prefix)
        calls = SubmittedCalls(Functions(connection), keys, config.redis_url, NAME)
        await stack.enter_async_context(calls)
        embedder = await stack.enter_async_context(open_embedder(config, calls))
        done = await reindex(store, embedder, _say)
        _say(f"{done} rows embedded by {embedder.model} ({embedder.dimension} numbers)")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run; errors of the kernel's end with their message and exit code 1."""
    try:
        return asyncio.run(_run(WorkerConfig.from_environment(environment())))
    except KernelError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
