"""Run the scheduler service: `python -m aios_broker.scheduler`.

Exit codes: 0 stopped by SIGTERM or SIGINT; 2 a setting is missing or wrong.
"""

import asyncio
import contextlib
import signal
import sys

import uvloop

from aios_broker import log
from aios_broker.config import environment
from aios_broker.contract.errors import InvalidConfig
from aios_broker.metrics.server import MetricsServer
from aios_broker.scheduler.config import SchedulerConfig
from aios_broker.scheduler.scheduler import Scheduler

EXIT_CONFIG = 2


async def serve(config: SchedulerConfig) -> None:
    """Run a scheduler until a signal asks it to stop."""
    serving = asyncio.current_task()
    assert serving is not None
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, serving.cancel)
    scheduler = Scheduler(config)
    with (
        MetricsServer(config.metrics_port, scheduler.stats.metrics, host=config.metrics_host),
        contextlib.suppress(asyncio.CancelledError),
    ):
        await scheduler.run()


def main() -> int:
    """Read the configuration and serve."""
    try:
        config = SchedulerConfig.from_environment(environment())
        log.configure(config.log_level, config.log_format)
        uvloop.run(serve(config))
    except InvalidConfig as error:
        sys.stderr.write(f"aios scheduler: {error}\n")
        return EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
