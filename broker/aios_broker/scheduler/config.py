"""What a scheduler process is told by its environment. Read once, in `main`; passed on by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct

from aios_broker.config import (
    PROCESS_PREFIXES,
    KernelConfig,
    LogFormat,
    LogLevel,
    read_settings,
    refuse_unknown,
    variables_of,
)
from aios_broker.postgres.database import check_database_url
from aios_broker.queues.records import PolicyRow
from aios_broker.redis.connection import parse_url
from aios_broker.scheduler.policy import policy_named

MEBIBYTE = 1024 * 1024

_DEFAULT = PolicyRow()


class SchedulerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the scheduler service. Each field is AIOS_<NAME>.

    Policy, quanta and limits are what the kernel starts with: while it runs, what is published in
    Redis counts (`aios policy`).
    """

    redis_url: str
    database_url: str | None = None  # None: no ledger is kept and no snapshot spilled
    key_prefix: str = "rq"  # RQ_KEY_PREFIX
    policy: str = _DEFAULT.name
    quantum_s: Annotated[float, Meta(ge=0.001, le=3600.0)] = _DEFAULT.quantum_s
    quantum_tokens: Annotated[int, Meta(ge=1)] = _DEFAULT.quantum_tokens
    max_waiting: Annotated[int, Meta(ge=1)] = _DEFAULT.max_waiting  # per module
    max_losses: Annotated[int, Meta(ge=1)] = _DEFAULT.max_losses
    # All snapshots in Redis together; beyond it the oldest go to Postgres.
    snapshot_budget_bytes: Annotated[int, Meta(ge=0)] = 256 * MEBIBYTE
    ledger_keep_days: Annotated[int, Meta(ge=0, le=36_500)] = 30  # 0: for ever
    # Of leadership: how long after the death of a scheduler a standby takes over.
    scheduler_lease_s: Annotated[float, Meta(ge=0.1, le=60.0)] = 2.0
    metrics_port: Annotated[int, Meta(ge=1, le=65_000)] | None = None  # None: not served
    metrics_host: str = "127.0.0.1"  # who may read them: 0.0.0.0 is everybody who gets here
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> SchedulerConfig:
        """Read the settings.

        Raises:
            InvalidConfig: A value is missing, malformed or out of range, or a variable has a name
                that nobody reads; `field` names it.
        """
        config = read_settings(cls, environ)
        known = [*variables_of(cls), *variables_of(KernelConfig)]
        refuse_unknown(environ, known=known, passed_on=PROCESS_PREFIXES)
        parse_url(config.redis_url)
        if config.database_url is not None:
            check_database_url(config.database_url)
        policy_named(config.policy)
        return config

    def policy_row(self) -> PolicyRow:
        """Return what is to be published when the kernel starts."""
        policy = policy_named(self.policy)
        return PolicyRow(
            name=policy.name,
            preempt=policy.preempt,
            quantum_s=self.quantum_s,
            quantum_tokens=self.quantum_tokens,
            max_waiting=self.max_waiting,
            max_losses=self.max_losses,
        )
