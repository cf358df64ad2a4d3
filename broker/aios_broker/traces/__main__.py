"""Tell traces: `python -m aios_broker.traces`.

Exit codes: 0 stopped by SIGTERM or SIGINT; 2 a setting is missing or wrong, or OpenTelemetry is not
installed.
"""

import asyncio
import contextlib
import logging
import signal
import sys

import uvloop

from aios_broker import log
from aios_broker.config import environment
from aios_broker.contract.errors import InvalidConfig, Unavailable
from aios_broker.metrics.server import MetricsServer
from aios_broker.retry import Backoff
from aios_broker.traces.config import TracesConfig
from aios_broker.traces.follower import Follower

logger = logging.getLogger(__name__)

POLL_S = 1.0  # between looks at a ledger that has nothing new
LONGEST_PAUSE_S = 30.0  # while the database or the collector is away
EXIT_CONFIG = 2


async def follow(follower: Follower) -> None:
    """Tell the ledger for ever."""
    backoff = Backoff(longest_s=LONGEST_PAUSE_S)
    while True:
        try:
            is_more = await follower.step()
        except Unavailable as error:
            if backoff.calm:
                logger.warning("traces wait: %s", error)
            await backoff.wait()
            continue
        backoff.reset()
        if not is_more:
            await asyncio.sleep(POLL_S)


async def serve(config: TracesConfig) -> None:
    """Follow the ledger until a signal asks to stop."""
    try:
        from aios_broker.traces.otlp import Sender  # noqa: PLC0415  an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise InvalidConfig(
            "traces need OpenTelemetry, which is not installed",
            field="AIOS_OTEL_ENDPOINT",
            remedy="install 'aios-broker[otel]', or unset it",
        ) from error
    serving = asyncio.current_task()
    assert serving is not None
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, serving.cancel)
    sender = Sender.to(config.otel_endpoint)
    follower = Follower(config.database_url, config.key_prefix, sender.send)
    with (
        contextlib.closing(sender),
        MetricsServer(config.metrics_port, follower.stats.metrics, host=config.metrics_host),
        contextlib.suppress(asyncio.CancelledError),
    ):
        async with contextlib.aclosing(follower):
            logger.info("traces go to %s", config.otel_endpoint)
            await follow(follower)


def main() -> int:
    """Read the configuration and serve."""
    try:
        config = TracesConfig.from_environment(environment())
        log.configure(config.log_level, config.log_format)
        uvloop.run(serve(config))
    except InvalidConfig as error:
        sys.stderr.write(f"aios traces: {error}\n")
        return EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
