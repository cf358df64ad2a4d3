"""The worker process: `python -m aios_workers llm`, `python -m aios_workers tool`.

Exit codes: 0 it was told to stop and drained, 1 it broke, 2 bad usage or settings.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from functools import partial

from aios_broker.config import environment
from aios_broker.contract.errors import InvalidConfig, KernelError, UnknownModule
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.ledger.spill import load_spilled
from aios_broker.log import configure
from aios_broker.metrics.server import MetricsServer
from aios_broker.queues.keys import Keys
from aios_workers.config import WorkerConfig
from aios_workers.kernel_port import LoadSpilled, nothing_spilled
from aios_workers.registry import load_module
from aios_workers.service import Place, open_worker, worker_name
from aios_workers.watchdog import watched
from aios_workers.worker import Worker

logger = logging.getLogger(__name__)

EXIT_BROKEN = 1
EXIT_USAGE = 2
EXIT_BY_SIGNAL = 128  # plus the signal's number, as shells have it


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Run a worker until it is told to stop; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m aios_workers", description=__doc__)
    parser.add_argument("module", choices=MODULES)
    module: Module = parser.parse_args(arguments).module
    try:
        config = WorkerConfig.from_environment(environ)
        configure(config.log_level)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve(module, config))
    except (InvalidConfig, UnknownModule) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    except KernelError as error:
        logger.error("the worker cannot go on: %s", error)  # noqa: TRY400  its message says it all
        return EXIT_BROKEN
    return 0


async def serve(module: Module, config: WorkerConfig) -> None:
    """Load the module, then serve its queue until a signal or a command says stop."""
    place = Place(
        worker_name(module), module, config.redis_url, Keys(config.key_prefix), config.limits
    )
    spilled: LoadSpilled = nothing_spilled
    if config.database_url is not None:
        spilled = partial(load_spilled, config.database_url)
    loaded = await load_module(module, config)
    async with open_worker(place, loaded, spilled) as worker, watched(config.worker_lease_s):
        _obey_signals(worker)
        with MetricsServer(config.metrics_port, worker.metrics):
            logger.info("worker %s serves %s", place.name, module)
            await worker.run()
    logger.info("worker %s left in good order", place.name)


def _obey_signals(worker: Worker) -> None:
    """First signal: drain and leave. Second: at once; the leases run out, others take over."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, worker, number)


def _on_signal(worker: Worker, number: signal.Signals) -> None:
    if worker.is_stopping:
        logger.warning("a second signal: leaving at once")
        logging.shutdown()
        os._exit(EXIT_BY_SIGNAL + number)
    worker.stop()


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop where it is installed: half the latency and a third less CPU."""
    try:
        import uvloop  # noqa: PLC0415  not on every platform
    except ImportError:
        return None
    return uvloop.Loop


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], environment()))
