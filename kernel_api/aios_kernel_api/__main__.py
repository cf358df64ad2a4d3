"""Run the API: `python -m aios_kernel_api`.

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 the kernel's Redis does not answer, 2 a setting is
missing or wrong.
"""

import logging
import resource
import sys
from collections.abc import Mapping

import uvloop

from aios_broker import log
from aios_broker.config import environment
from aios_broker.contract.errors import InvalidConfig, KernelError
from aios_broker.metrics.server import MetricsServer
from aios_kernel_api.config import ApiConfig
from aios_kernel_api.kernel import open_kernel
from aios_kernel_api.server import listen, serve

logger = logging.getLogger(__name__)

EXIT_BROKEN = 1
EXIT_CONFIG = 2
OTHER_FILES = 256  # beside the connections: servers, logs, the loop's own


def allow_files(wanted: int) -> None:
    """Let this process have as many connections open as its settings say, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        logger.warning("only %d files may be open; connections beyond that are refused", most)


async def run(config: ApiConfig) -> None:
    """Serve the kernel of these settings."""
    allow_files(config.api_max_connections + OTHER_FILES)
    with listen(config) as listening:
        async with open_kernel(config) as kernel:
            with MetricsServer(config.metrics_port, kernel.metrics, host=config.metrics_host):
                await serve(kernel, listening)


def main(environ: Mapping[str, str]) -> int:
    """Read the configuration and serve; return the exit code."""
    try:
        config = ApiConfig.from_environment(environ)
        log.configure(config.log_level, config.log_format)
        uvloop.run(run(config))
    except InvalidConfig as error:
        sys.stderr.write(f"aios api: {error}\n")
        return EXIT_CONFIG
    except KernelError as error:
        logger.error("the API cannot go on: %s", error)  # noqa: TRY400  its message says it all
        return EXIT_BROKEN
    return 0


if __name__ == "__main__":
    sys.exit(main(environment()))
