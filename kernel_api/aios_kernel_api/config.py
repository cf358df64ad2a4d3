"""What the API process is told by its environment. Read once, in `main`; passed on by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from aios_broker.audit_folder import AuditFolder
from aios_broker.config import (
    PROCESS_PREFIXES,
    KernelConfig,
    LogFormat,
    LogLevel,
    read_settings,
    refuse_unknown,
    variables_of,
)
from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.llm import MAX_ANSWER_TOKENS
from aios_broker.contract.names import Name
from aios_broker.postgres.database import check_database_url
from aios_broker.redis.connection import parse_url

MEBIBYTE = 1024 * 1024
OWN_PREFIX = "AIOS_API_"


class ApiConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the API. Each field is AIOS_<NAME>."""

    redis_url: str
    database_url: str | None = None  # None: nobody administers, and what is stored is not shown
    # Where the audit log's key is, and its newest line: operators decide by it. None: in the state
    # directory, or, without one, nobody decides by the API.
    audit_dir: Path | None = None
    state_dir: Path | None = None
    key_prefix: str = "rq"  # RQ_KEY_PREFIX
    api_host: str = "127.0.0.1"  # who reaches it: 0.0.0.0 is everybody who gets here
    api_port: Annotated[int, Meta(ge=0, le=65_535)] = 0  # 0: a free one
    # Where clients reach it, where that is not what they ask for: behind a proxy with TLS.
    api_public_url: str | None = None
    # Open at once; beyond it the API says that it is busy.
    api_max_connections: Annotated[int, Meta(ge=1, le=100_000)] = 4_096
    # Of one agent, however many tokens it has: a stream is one for as long as it lasts.
    api_max_requests: Annotated[int, Meta(ge=1, le=100_000)] = 1_024
    # Of all requests that are being read, together.
    api_max_body_bytes: Annotated[int, Meta(ge=MEBIBYTE)] = 256 * MEBIBYTE
    # A request's head, and a body of usual size, have to be here by then; a client that does not
    # read for so long is cut off.
    api_slow_client_s: Annotated[float, Meta(ge=0.1, le=3_600.0)] = 30.0
    # A kernel that is away longer fails what waits for it.
    api_patience_s: Annotated[float, Meta(ge=0.1, le=600.0)] = 10.0
    # At a stop: streams go on for so long.
    api_drain_s: Annotated[float, Meta(ge=0.1, le=3_600.0)] = 8.0
    # Without news a stream of the gateway says that it waits: what stands between cuts silent ones.
    api_keep_alive_s: Annotated[float, Meta(ge=0.1, le=600.0)] = 10.0
    # Where a model's name that is nobody's leads to; None: the core that takes what names none.
    api_default_core: Name | None = None
    # Of a chat that says none; fewer where the core's context has no room for them.
    api_default_max_tokens: Annotated[int, Meta(ge=1, le=MAX_ANSWER_TOKENS)] = 4_096
    # Where an rq-dashboard of this kernel is: the page links to it. None: it says how to run one.
    api_rq_dashboard_url: str | None = None
    metrics_port: Annotated[int, Meta(ge=1, le=65_000)] | None = None  # None: not served
    metrics_host: str = "127.0.0.1"  # who may read them: 0.0.0.0 is everybody who gets here
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"

    @property
    def audit_folder(self) -> AuditFolder | None:
        """Where the key of the audit log lies; None: not here."""
        at = self.state_dir or self.audit_dir
        return None if at is None else AuditFolder.of(at, self.audit_dir)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> ApiConfig:
        """Read the settings.

        Raises:
            InvalidConfig: A value is missing, malformed or out of range, or a variable has a name
                that nobody reads; `field` names it.
        """
        config = read_settings(cls, environ)
        known = [*variables_of(cls), *variables_of(KernelConfig)]
        others = tuple(prefix for prefix in PROCESS_PREFIXES if prefix != OWN_PREFIX)
        refuse_unknown(environ, known=known, passed_on=others)
        parse_url(config.redis_url)
        if config.api_public_url is not None:
            check_public_url(config.api_public_url)
        if config.api_rq_dashboard_url is not None:
            check_dashboard_url(config.api_rq_dashboard_url)
        if config.database_url is not None:
            check_database_url(config.database_url)
        return config


def check_public_url(url: str) -> None:
    """Return when an address is one that clients can be told.

    Raises:
        InvalidConfig: it is none.
    """
    parts = urlsplit(url)
    if parts.scheme in ("http", "https") and parts.netloc and not (parts.query or parts.fragment):
        return
    raise InvalidConfig(
        f"{url!r} is no address of a server",
        field="AIOS_API_PUBLIC_URL",
        remedy="give one as https://agents.example.org",
    )


def check_dashboard_url(url: str) -> None:
    """Return when an address is one that a page may link to.

    Raises:
        InvalidConfig: it is none.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.password is not None:
        raise InvalidConfig(
            "it is no address of a server, or has a password, which all who look would see",
            field="AIOS_API_RQ_DASHBOARD_URL",
            remedy="give one as http://127.0.0.1:9181",
        )
