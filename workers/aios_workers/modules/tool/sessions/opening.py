"""The exec sessions of a worker, opened: what they stand on, and what sees to them."""

import secrets
from contextlib import AsyncExitStack

from aios_broker.queues.exec_commits import CommitRecords
from aios_broker.queues.exec_sessions import SessionRecords
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection
from aios_broker.retry import periodic_task
from aios_workers.config import WorkerConfig
from aios_workers.modules.tool.running import Launch, Sandbox
from aios_workers.modules.tool.sessions.commits import Commits
from aios_workers.modules.tool.sessions.host import SessionHost, SessionTerms
from aios_workers.modules.tool.sessions.session_answers import SessionAnswers
from aios_workers.modules.tool.sessions.session_calls import Calls


async def open_sessions(
    config: WorkerConfig,
    name: str,
    sandbox: Sandbox,
    place: Launch,
    calls: Calls,
    stack: AsyncExitStack,
) -> SessionAnswers:
    """Open what answers the syscalls of sessions; it is closed with the stack.

    Args:
        config: The settings.
        name: How this process shows itself to the servers.
        sandbox: What keeps sessions in.
        place: The folder that their workspaces lie in, and what they are told.
        calls: What makes the syscalls that code in them makes.
        stack: Closes what is opened.
    """
    keys = Keys(config.key_prefix)
    connection = Connection(config.redis_url, name=f"{name}.exec")
    stack.push_async_callback(connection.aclose)
    waiting = Connection(config.redis_url, name=f"{name}.exec.wait")
    stack.push_async_callback(waiting.aclose)
    records = SessionRecords(connection, keys)
    terms = SessionTerms(
        config.exec_agent_sessions, config.exec_tenant_sessions, config.tool_sandbox == "none"
    )
    host = SessionHost(f"{name}.{secrets.token_hex(3)}", records, calls, sandbox, place, terms)
    stack.push_async_callback(host.close)
    commits = Commits(host, CommitRecords(connection, keys), calls)
    answers = SessionAnswers(host, records, commits, waiting)
    stack.push_async_callback(answers.close)
    trouble = "exec sessions are not seen to"
    await stack.enter_async_context(periodic_task("exec sessions", host.step, trouble))
    await stack.enter_async_context(periodic_task("exec messages", answers.step, trouble))
    return answers
