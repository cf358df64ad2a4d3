"""What the process that tells traces is told by its environment. Read once, in `main`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct

from aios_broker.config import (
    PROCESS_PREFIXES,
    KernelConfig,
    LogFormat,
    LogLevel,
    check_endpoint,
    read_settings,
    refuse_unknown,
    variables_of,
)
from aios_broker.postgres.database import check_database_url


class TracesConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the process. Each field is AIOS_<NAME>; OTEL_ variables are OpenTelemetry's."""

    database_url: str
    otel_endpoint: str  # of a collector, by OTLP over HTTP, without /v1/traces
    key_prefix: str = "rq"  # RQ_KEY_PREFIX
    metrics_port: Annotated[int, Meta(ge=1, le=65_000)] | None = None  # None: not served
    metrics_host: str = "127.0.0.1"  # who may read them: 0.0.0.0 is everybody who gets here
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> TracesConfig:
        """Read the settings.

        Raises:
            InvalidConfig: A value is missing, malformed or out of range, or a variable has a name
                that nobody reads; `field` names it.
        """
        config = read_settings(cls, environ)
        known = [*variables_of(cls), *variables_of(KernelConfig)]
        refuse_unknown(environ, known=known, passed_on=PROCESS_PREFIXES)
        check_database_url(config.database_url)
        check_endpoint(config.otel_endpoint)
        return config
