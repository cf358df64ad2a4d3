"""The tables of approvals: what people decide, and by what rules they are asked."""

from sqlalchemy import BigInteger, Column, Identity, Index, Table, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB

from aios_broker.ledger.tables import metadata
from aios_workers.modules.columns import agent_column, moment_column, tenant_column

approval = Table(
    "approval",
    metadata,
    Column("id", Text, primary_key=True),  # 32 hex digits
    tenant_column(),
    agent_column("agent_id"),
    Column("job_id", Text, nullable=False),
    Column("module", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("arguments", JSONB, nullable=False),  # those that will run: edited ones, if they were
    Column("arguments_sha256", Text, nullable=False),
    Column("asked_sha256", Text, nullable=False),  # of those that were asked for
    Column("what", Text, nullable=False),
    Column("diff", Text, nullable=False, server_default=text("''")),
    Column("state", Text, nullable=False),  # waiting, approved, denied, expired, used
    moment_column("asked_at", now=True),
    moment_column("expires_at"),
    Column("decided_by", Text, nullable=False, server_default=text("''")),
    moment_column("decided_at", nullable=True),
    Column("reason", Text, nullable=False, server_default=text("''")),
    moment_column("used_at", nullable=True),
    moment_column("resumed_at", nullable=True),  # the job was put back into its queue
    moment_column("announced_at", nullable=True),  # the webhook has it
    UniqueConstraint("job_id", "asked_sha256"),
    Index(None, "state", "asked_at"),
    Index(None, "agent_id"),
)

approval_rule = Table(
    "approval_rule",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    tenant_column(),
    agent_column("agent_id", nullable=True),  # null: all agents of the tenant
    Column("operation", Text, nullable=False),
    Column("rule", Text, nullable=False),
    UniqueConstraint("tenant_id", "agent_id", "operation", postgresql_nulls_not_distinct=True),
)
