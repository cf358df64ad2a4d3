"""What the SDK promises at its door: its names, and that it is light."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import aios_sdk
from aios_broker.contract.errors import KernelNotRunning, all_errors
from aios_broker.contract.syscall import KINDS, module_of
from aios_sdk import Agent, AsyncAgent, InvalidSyscall
from aios_sdk.config import find_kernel
from aios_sdk.tree import Kind
from aios_sdk.verbs import AsyncVerbs, Verbs

ERRORS = {error.__name__ for error in all_errors().values()}
NAMES = {
    "Agent",
    "Alternative",
    "AsyncAgent",
    "AsyncOpenSession",
    "Call",
    "CallStatus",
    "ChatResult",
    "Choice",
    "Chunk",
    "ContextClear",
    "ContextExpand",
    "ContextGet",
    "ContextResult",
    "ContextSet",
    "ContextSummarise",
    "CountResult",
    "EchoResult",
    "EmbedResult",
    "Format",
    "GrammarFormat",
    "Image",
    "JsonFormat",
    "LlmChat",
    "LlmCount",
    "LlmEmbed",
    "Message",
    "RegexFormat",
    "Reply",
    "Stream",
    "SyncCall",
    "SyncStream",
    "Timings",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolEcho",
    "Usage",
    "Acknowledged",
    "Approval",
    "Approvals",
    "Audit",
    "AuditEntry",
    "Grant",
    "Grants",
    "Group",
    "Groups",
    "HeldToken",
    "ObjectRef",
    "OpenSession",
    "Opening",
    "Rules",
    "TokenIssued",
    "Verdict",
    "Whoami",
    "Content",
    "Diff",
    "Entries",
    "Entry",
    "FileChange",
    "FileVersion",
    "FileVersions",
    "Found",
    "FoundFiles",
    "Plan",
    "ShareLink",
    "Step",
    "BlockStat",
    "Evolved",
    "Note",
    "NoteHistory",
    "NoteRecord",
    "NoteRecords",
    "Notes",
    "NoteVersion",
    "Recall",
    "Restored",
    "Fault",
    "ChangedFile",
    "ForeignFiles",
    "Manifest",
    "WorkspaceChanges",
    "ExecFailure",
    "ExecOutcome",
    "ExecSession",
    "ExecSessions",
    "MadeFile",
    "NetworkRule",
    "ParallelLimits",
    "RunLimits",
    "ToolCard",
    "ToolCards",
    "ToolResult",
    "ToolRunFacts",
    "tool",
}
HEAVY = ("redis", "hiredis", "rq", "numpy", "click", "httpx", "sqlalchemy", "aios_broker.queues")
THIRD_PARTY = """
import json, sys
before = set(sys.modules)
import aios_sdk
roots = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(roots - set(sys.stdlib_module_names))))
"""
WITHOUT_HIREDIS = """
import sys
sys.modules["hiredis"] = None
import aios_sdk
try:
    aios_sdk.Agent("writer", url="redis://127.0.0.1:1/0").open()
except aios_sdk.InvalidConfig as error:
    print(error)
"""


def run(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        env={"PYTHONPATH": ":".join(sys.path)},
    ).stdout


def test_the_public_names_are_these() -> None:
    assert set(aios_sdk.__all__) == NAMES | ERRORS
    assert all(hasattr(aios_sdk, name) for name in aios_sdk.__all__)


def test_importing_it_loads_msgspec_and_nothing_else() -> None:
    loaded = set(json.loads(run(THIRD_PARTY)))
    assert loaded - {"typing_extensions"} == {"aios_broker", "aios_sdk", "msgspec"}  # msgspec's


def test_importing_it_does_not_load_the_queues() -> None:
    loaded = run("import sys, aios_sdk; print('\\n'.join(sys.modules))").split()
    assert not {name for name in loaded if name.startswith(HEAVY)}


def test_a_missing_extra_is_named() -> None:
    assert "aios-broker[redis]" in run(WITHOUT_HIREDIS)


@pytest.mark.parametrize("name", ["llm", "context", "tool", "exec", "memory", "storage", "access"])
def test_both_agents_have_the_same_verbs(name: str) -> None:
    asynchronous, synchronous = getattr(AsyncAgent("writer"), name), getattr(Agent("writer"), name)
    assert type(asynchronous) is type(synchronous)
    kinds = [verb for verb, kind in vars(type(asynchronous)).items() if isinstance(kind, Kind)]
    assert kinds
    for verb in kinds:
        assert isinstance(getattr(asynchronous, verb), AsyncVerbs)
        assert isinstance(getattr(synchronous, verb), Verbs)
        assert getattr(synchronous, verb) is getattr(synchronous, verb)  # made once


def test_every_syscall_of_these_modules_has_its_verb() -> None:
    agent = AsyncAgent("writer")
    for kind in (
        kind for kind in KINDS if module_of(kind) in ("memory", "storage", "access", "tool")
    ):
        tree, verb = kind.split(".")
        assert hasattr(getattr(agent, tree), verb)


def test_both_agents_have_the_same_tree() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(AsyncAgent) - {"aclose"} == public(Agent) - {"close", "options"}
    assert public(aios_sdk.Call) == public(aios_sdk.SyncCall)
    assert public(aios_sdk.Stream) == public(aios_sdk.SyncStream) - {"call"}


def test_help_shows_the_arguments_of_a_call() -> None:
    for agent in (Agent("writer"), AsyncAgent("writer")):
        assert list(inspect.signature(agent.llm.chat).parameters) == ["messages", "fields"]
        assert "plain string" in (agent.llm.chat.__doc__ or "")


def test_a_bad_name_or_option_is_refused_at_once() -> None:
    with pytest.raises(InvalidSyscall, match="agent"):
        Agent("no spaces")
    with pytest.raises(InvalidSyscall, match="options"):
        Agent("writer").with_options(wings=2)  # type: ignore[call-arg]


def test_where_the_kernel_is_looked_for(tmp_path: Path) -> None:
    record = tmp_path / "aios" / "kernel.json"
    environ = {"XDG_STATE_HOME": str(tmp_path), "RQ_KEY_PREFIX": "p"}
    with pytest.raises(KernelNotRunning, match="no kernel was found") as caught:
        find_kernel(environ=environ)
    assert "aios up" in (caught.value.remedy or "")
    record.parent.mkdir()
    for broken in ("", "[]", "{}", '{"redis_url": 5}'):
        record.write_text(broken)
        with pytest.raises(KernelNotRunning, match=r"kernel\.json"):
            find_kernel(environ=environ)
    record.write_text('{"redis_url": "unix:///here"}')
    assert find_kernel(environ=environ).url == "unix:///here"
    assert find_kernel(environ=environ).key_prefix == "p"
    assert find_kernel(environ=environ).record_path == record
    assert (
        find_kernel(environ={**environ, "AIOS_REDIS_URL": "unix:///there"}).url == "unix:///there"
    )
    assert find_kernel("unix:///given", {**environ, "AIOS_REDIS_URL": "x"}).url == "unix:///given"
