"""The worker process: `python -m aios_workers llm`, or `tool`, or `memory storage access`.

Exit codes: 0 it was told to stop and drained, 1 it broke, 2 bad usage or settings.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial

from prometheus_client.core import Metric

from aios_broker.config import environment
from aios_broker.contract.errors import InvalidConfig, KernelError, UnknownModule
from aios_broker.contract.names import Module
from aios_broker.contract.syscall import MODULES
from aios_broker.ledger.spill import load_spilled
from aios_broker.log import configure
from aios_broker.metrics.server import MetricsServer
from aios_broker.queues.keys import Keys
from aios_workers.config import WorkerConfig
from aios_workers.llm.core_entry import followed
from aios_workers.runtime.kernel import LoadSpilled, nothing_spilled
from aios_workers.runtime.loop import Worker, WorkerSpec
from aios_workers.runtime.registry import load_modules, open_worker, watched, worker_name

logger = logging.getLogger(__name__)

EXIT_BROKEN = 1
EXIT_USAGE = 2
EXIT_BY_SIGNAL = 128  # plus the signal's number, as shells have it


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Run a worker until it is told to stop; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m aios_workers", description=__doc__)
    parser.add_argument("modules", nargs="+", choices=MODULES, metavar="module")
    parser.add_argument("--core", metavar="NAME", help="of llm: a core of cores.toml")
    asked = parser.parse_args(arguments)
    modules: list[Module] = list(dict.fromkeys(asked.modules))
    if asked.core is not None and modules != ["llm"]:
        parser.error("--core is of the module llm")
    try:
        config = WorkerConfig.from_environment(environ)
        configure(config.log_level, config.log_format)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve(modules, config, asked.core))
    except (InvalidConfig, UnknownModule) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    except KernelError as error:
        logger.error("the worker cannot go on: %s", error)  # noqa: TRY400  its message says it all
        return EXIT_BROKEN
    return 0


async def serve(modules: Sequence[Module], config: WorkerConfig, core: str | None = None) -> None:
    """Load the modules, then serve their queues until a signal or a command says stop."""
    spilled: LoadSpilled = nothing_spilled
    if config.database_url is not None:
        spilled = partial(load_spilled, config.database_url)
    async with AsyncExitStack() as stack:
        loaded = await load_modules(modules, config, worker_name(modules[0]), stack, core)
        workers = [
            await stack.enter_async_context(open_worker(_spec(module, config), one, spilled))
            for module, one in loaded.items()
        ]
        await stack.enter_async_context(watched(config.worker_lease_s))
        if (entry := loaded[modules[0]].entry) is not None:
            read = partial(config.settings_now, core)
            following = followed(entry, config.cores_path, read, workers[0].show)
            await stack.enter_async_context(following)
        _obey_signals(workers)
        with MetricsServer(
            config.metrics_port, partial(_metrics, workers), host=config.metrics_host
        ):
            logger.info("worker %s serves %s", worker_name(modules[0]), ", ".join(modules))
            await asyncio.gather(*(worker.run() for worker in workers))
    logger.info("worker %s left in good order", worker_name(modules[0]))


def _spec(module: Module, config: WorkerConfig) -> WorkerSpec:
    keys = Keys(config.key_prefix)
    return WorkerSpec(worker_name(module), module, config.redis_url, keys, config.limits)


def _metrics(workers: Sequence[Worker]) -> Iterable[Metric]:
    """Return the metrics of all workers of this process; each family once."""
    families: dict[str, Metric] = {}
    for worker in workers:
        for metric in worker.metrics():
            if (family := families.setdefault(metric.name, metric)) is not metric:
                family.samples.extend(metric.samples)
    return families.values()


def _obey_signals(workers: Sequence[Worker]) -> None:
    """First signal: drain and leave. Second: at once; the leases run out, others take over."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, workers, number)


def _on_signal(workers: Sequence[Worker], number: signal.Signals) -> None:
    if all(worker.is_stopping for worker in workers):
        logger.warning("a second signal: leaving at once")
        logging.shutdown()
        os._exit(EXIT_BY_SIGNAL + number)
    for worker in workers:
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
