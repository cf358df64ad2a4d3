"""How many of our files one `llm.chat` crosses, from the agent's call to its answer.

    python -m benchmarks.files_crossed

Client and worker in one process, the simulated core, a Redis of its own. After a warm-up call one
more is made under a profiler, and the files are counted whose functions ran meanwhile; what the
worker does between calls (renewing leases, looking for work) counts where it falls into the call.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from types import FrameType

from aios_broker.process.child import StandaloneServer
from aios_local.embedded.redis import RedisServer
from aios_local.embedded.state import StateDir
from aios_sdk import AsyncAgent
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore, SimulatedCoreConfig
from aios_workers.runtime.loop import WorkerSpec
from aios_workers.runtime.registry import llm_module, open_worker, worker_name

PACKAGES = ("aios_sdk", "aios_broker", "aios_workers")


async def crossed(url: str) -> set[str]:
    """Return the files of one call, as package/path."""
    files: set[str] = set()

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            files.add(frame.f_code.co_filename)

    loaded = await llm_module(SimulatedCore(SimulatedCoreConfig()))
    async with open_worker(WorkerSpec(worker_name("llm"), "llm", url), loaded) as worker:
        serving = asyncio.create_task(worker.run())
        async with AsyncAgent("profiled", url=url) as me:
            await me.llm.chat("warm up", max_tokens=4)
            sys.setprofile(profile)
            await me.llm.chat("count", max_tokens=4)
            sys.setprofile(None)
        worker.stop()
        await serving
    ours = set()
    for name in files:
        parts = Path(name).parts
        at = next((parts.index(package) for package in PACKAGES if package in parts), None)
        if at is not None:
            ours.add("/".join(parts[at:]))
    return ours


def main() -> int:
    """Count, print the files and how many they are."""
    with tempfile.TemporaryDirectory(prefix="aios-files-") as folder:
        state = StateDir.open(Path(folder))
        server = RedisServer.of(state)
        with StandaloneServer(server.service(), state.log_dir / "redis.log"):
            files = asyncio.run(crossed(server.url))
        state.remove_sockets()
    print("\n".join(sorted(files)))
    print(f"{len(files)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
