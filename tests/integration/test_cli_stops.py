"""`aios agents suspend | resume`, as an operator types them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from aios_broker.audit_folder import AuditFolder
from aios_broker.contract.errors import AgentSuspended
from aios_broker.contract.syscall import new_id
from aios_broker.queues.records import JobMetadata, Submission
from aios_cli.agent_stops import resume, suspend
from tests.queue_user import DATA, queue_user

ADA = JobMetadata("ada", "llm.chat", tenant="acme")


@pytest.fixture
def environ(redis_url: str, tmp_path: Path) -> dict[str, str]:
    return {"AIOS_REDIS_URL": redis_url, "AIOS_STATE_DIR": str(tmp_path)}


def run(environ: dict[str, str], command: click.Command, *arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, env=environ)


def submit(redis_url: str, *who: JobMetadata) -> Sequence[object]:
    async def submitted() -> Sequence[object]:
        async with queue_user(redis_url) as user:
            return await user.queue.submit([Submission(new_id(), DATA, each, "") for each in who])

    return asyncio.run(submitted())


def test_an_agent_is_stopped_and_goes_on(
    environ: dict[str, str], redis_url: str, database_url: str
) -> None:
    environ["AIOS_DATABASE_URL"] = database_url
    AuditFolder.of(Path(environ["AIOS_STATE_DIR"]), None).made_key()
    submit(redis_url, ADA, ADA)
    stopped = run(environ, suspend, "ada", "--tenant", "acme")
    assert stopped.output.strip() == "agent acme/ada is suspended; 2 of its syscalls were ended"
    [refused] = submit(redis_url, ADA)
    assert isinstance(refused, AgentSuspended)
    again = json.loads(run(environ, resume, "ada", "--tenant", "acme", "--json").output)
    assert again == {"tenant": "acme", "agent": "ada", "suspended": False, "ended": 0}
    assert submit(redis_url, ADA) == ["queued"]


def test_where_the_audit_logs_key_is_not_the_switch_works_and_says_so(
    environ: dict[str, str], redis_url: str, database_url: str, tmp_path: Path
) -> None:
    environ["AIOS_DATABASE_URL"] = database_url
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "key").write_text("no key")
    done = run(environ, suspend, "ada", "--tenant", "acme")
    assert "agent 'ada' is suspended, and 0 of its syscalls were ended" in str(done.exception)
    assert isinstance(submit(redis_url, ADA)[0], AgentSuspended)
    (tmp_path / "audit" / "key").unlink()
    AuditFolder.of(tmp_path, None).made_key()
    assert run(environ, resume, "ada", "--tenant", "acme").exit_code == 0


def test_a_tenant_is_stopped_where_the_kernel_keeps_no_database(
    environ: dict[str, str], redis_url: str
) -> None:
    done = json.loads(run(environ, suspend, "--tenant", "acme", "--json").output)
    assert (done["tenant"], done["agent"], done["suspended"]) == ("acme", "", True)
    assert isinstance(submit(redis_url, ADA)[0], AgentSuspended)
    assert "may go on" in run(environ, resume, "--tenant", "acme").output
    assert submit(redis_url, ADA) == ["queued"]


def test_nobody_is_named(environ: dict[str, str]) -> None:
    assert run(environ, suspend).exit_code == 2
    assert run(environ, suspend, "a b").exit_code != 0
