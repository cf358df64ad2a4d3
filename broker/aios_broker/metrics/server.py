"""The /metrics page of one process, served on a thread of its own.

Nothing is counted twice: processes keep their counters as plain numbers, and a page reads them at
the moment it is asked for.
"""

import errno
import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Self

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from aios_broker.contract.errors import InvalidConfig

logger = logging.getLogger(__name__)

PORTS_TRIED = 64  # from the configured one on: the processes of one machine share a setting
Collect = Callable[[], Iterable[Metric]]


class Page(Collector):
    """What a function returns, as a source of prometheus_client."""

    def __init__(self, collect: Collect) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they are now."""
        return self._collect()


class MetricsServer(ExitStack):
    """Serves what `collect` returns, and the process's own CPU, memory and files.

    When the block ends, the port is free again.
    """

    def __init__(self, port: int | None, collect: Collect, *, host: str) -> None:
        """Take the first free port of `host` from `port` on; None: serve nothing.

        Whoever reaches the page can read it: `host` says who that is. `collect` is called on
        another thread: it may read numbers, and change nothing.
        """
        super().__init__()
        self.port: int | None = None
        self._wanted = port
        self._host = host
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Page(collect))
        ProcessCollector(registry=self._registry)

    def __enter__(self) -> Self:
        """Start.

        Raises:
            InvalidConfig: none of the ports is free.
        """
        if self._wanted is None:
            return self
        for port in range(self._wanted, self._wanted + PORTS_TRIED):
            if self._serve(port):
                logger.info("metrics: http://%s:%d/metrics", self._host, self.port)
                return self
        raise InvalidConfig(
            f"the ports {self._wanted} to {self._wanted + PORTS_TRIED - 1} are all in use",
            field="AIOS_METRICS_PORT",
            remedy="name another port",
        )

    def _serve(self, port: int) -> bool:
        """Serve on a port; False: it is in use."""
        try:
            server, thread = start_http_server(port, self._host, registry=self._registry)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise InvalidConfig(
                f"metrics cannot be served on {self._host}, port {port}: {error.strerror or error}",
                field="AIOS_METRICS_PORT",
                remedy="name another port, or an address of this machine as AIOS_METRICS_HOST",
            ) from error
        self.port = int(server.server_port)
        self.callback(thread.join)
        self.callback(server.server_close)
        self.callback(server.shutdown)
        return True
