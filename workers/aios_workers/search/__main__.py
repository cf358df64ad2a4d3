"""`python -m aios_workers.search`: embed everything anew; what `aios reindex` starts."""

import asyncio
import sys
from contextlib import AsyncExitStack

from aios_broker.config import environment
from aios_broker.contract.errors import KernelError
from aios_workers.config import WorkerConfig
from aios_workers.search.embedder import open_stores
from aios_workers.search.indexing import reindex

NAME = "aios-reindex"
LIMIT_S = 300.0  # of one batch: a core may have a queue before it


async def _run(config: WorkerConfig) -> int:
    async with AsyncExitStack() as stack:
        store, _, _, embedder = await open_stores(config, NAME, stack, limit_s=LIMIT_S)
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
