"""Operations are declared once, under the body that they take, with what they may take away."""

from __future__ import annotations

from typing import Any, cast, get_args

import pytest

from aios_broker.contract.access import AccessBody
from aios_broker.contract.memory import MemoryBody, MemoryClear, MemoryList
from aios_broker.contract.names import Module
from aios_broker.contract.reply import Result
from aios_broker.contract.storage import StorageBody, StorageRead
from aios_broker.contract.syscall import Syscall, new_id
from aios_broker.postgres.store import AgentRow
from aios_workers.approvals.irreversible import Irreversible
from aios_workers.modules.operation import Asked, Pending, Work, changes, reads, table
from aios_workers.modules.state_handler import OPERATIONS
from aios_workers.modules.storage.files import read, write
from aios_workers.modules.storage.namespace import file_changes, file_reads

ANN = AgentRow(1, 1, "ann", "default", administrator=False)


@pytest.mark.parametrize(
    ("module", "bodies"),
    [("memory", MemoryBody), ("storage", StorageBody), ("access", AccessBody)],
)
def test_each_body_of_a_module_has_one_operation(module: Module, bodies: object) -> None:
    assert set(OPERATIONS[module]) == set(get_args(bodies))


def test_what_may_wait_for_a_person_is_what_declares_it() -> None:
    declared = {
        str(cast("Any", each.body).__struct_config__.tag): each.irreversible
        for module in OPERATIONS.values()
        for each in module.values()
        if each.irreversible
    }
    assert declared == {
        "memory.update": ("overwrite",),
        "memory.remove": ("delete",),
        "memory.rollback": ("rollback", "overwrite"),
        "memory.undo": ("overwrite",),
        "memory.clear": ("clear",),
        "memory.ttl": ("delete",),
        "memory.share": ("unshare",),
        "memory.unshare": ("unshare",),
        "storage.write": ("overwrite",),
        "storage.append": ("overwrite",),
        "storage.apply": ("delete", "overwrite"),
        "storage.move": ("delete", "unshare"),
        "storage.copy": ("overwrite",),
        "storage.delete": ("delete",),
        "storage.rollback": ("rollback", "overwrite"),
        "storage.mount": ("privilege",),
        "storage.share": ("unshare",),
        "storage.unshare": ("unshare",),
        "storage.operate": ("delete", "overwrite", "unshare"),
        "access.register": ("privilege",),
        "access.revoke_token": ("privilege",),
        "access.group_delete": ("privilege",),
        "access.group_add": ("privilege",),
        "access.group_remove": ("privilege",),
        "access.grant": ("unshare",),
        "access.revoke": ("unshare",),
        "access.set_rule": ("privilege",),
    }


async def list_notes(work: Work[MemoryList]) -> Result:
    raise AssertionError(work)


async def test_what_is_not_declared_is_not_asked_for() -> None:
    """An operation that forgot to declare it fails in its first test, before it takes anything."""
    syscall = Syscall(new_id(), "ann", MemoryClear())
    asked = Asked(cast("Any", None), ANN, syscall, MemoryClear(), ("rollback",))
    work = Work(asked, cast("Any", None), Pending())
    with pytest.raises(TypeError, match="is not declared as 'clear'"):
        await work.take(Irreversible("clear", "delete all notes", ()))


def test_a_body_has_one_operation() -> None:
    with pytest.raises(ValueError, match="two operations"):
        table(reads(MemoryList, list_notes), reads(MemoryList, list_notes))


def test_a_step_under_the_wrong_body_is_a_type_error() -> None:
    """What mypy says of these lines is the test: an ignore that is not needed is an error, too."""
    reads(MemoryClear, list_notes)  # type: ignore[arg-type]
    changes(StorageRead, list_notes)  # type: ignore[arg-type]
    file_changes(StorageRead, write)  # type: ignore[arg-type]
    file_reads(MemoryList, read)  # type: ignore[type-var, arg-type]
