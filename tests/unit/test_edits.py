"""What an agent makes of another's request is less of the same, or it is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.access.edits import check_narrower
from aios_broker.contract.access import AccessGroupAdd, AccessRevoke, ObjectRef
from aios_broker.contract.errors import AccessDenied
from aios_broker.contract.memory import MemoryRemove, MemoryUnshare
from aios_broker.contract.paths import normal_path
from aios_broker.contract.storage import StorageDelete, StorageMove, StorageUnshare, StorageWrite
from aios_broker.contract.syscall import Body
from tests.hostile_paths import HOSTILE_PATHS

FILE = ObjectRef("file", "a.txt")
NOTE, OTHER_NOTE = "0" * 32, "1" * 32


@pytest.mark.parametrize(
    ("asked", "edited"),
    [
        (StorageDelete("d", recursive=True), StorageDelete("d/e", recursive=True)),
        (StorageDelete("d", recursive=True), StorageDelete("/d/e.txt")),
        (StorageDelete("d", recursive=True), StorageDelete("d")),
        (StorageDelete("/", recursive=True, owner="o"), StorageDelete("x", owner="o")),
        (AccessRevoke(FILE), AccessRevoke(FILE, agent="bob")),
        (MemoryUnshare(NOTE), MemoryUnshare(NOTE, group="team")),
        (StorageUnshare("a.txt"), StorageUnshare("a.txt", agent="bob")),
        (AccessGroupAdd("team", "bob", "admin"), AccessGroupAdd("team", "bob")),
        (StorageWrite("a.txt", "new"), StorageWrite("a.txt", "new")),  # as it was
    ],
)
def test_less_of_the_same_is_let_through(asked: Body, edited: Body) -> None:
    check_narrower(asked, edited)


@pytest.mark.parametrize(
    ("asked", "edited"),
    [
        (StorageDelete("d"), StorageDelete("d", recursive=True)),
        (StorageDelete("d"), StorageDelete("d/e")),
        (StorageDelete("d/e", recursive=True), StorageDelete("d", recursive=True)),
        (StorageDelete("d", recursive=True), StorageDelete("de", recursive=True)),
        (StorageDelete("d", recursive=True), StorageDelete("d/e", owner="o")),
        (StorageDelete("d", recursive=True, owner="o"), StorageDelete("d/e")),
        (AccessRevoke(FILE, agent="bob"), AccessRevoke(FILE)),
        (AccessRevoke(FILE, agent="bob"), AccessRevoke(FILE, agent="ann")),
        (AccessRevoke(FILE), AccessRevoke(ObjectRef("file", "b.txt"), agent="bob")),
        (MemoryUnshare(NOTE), MemoryUnshare(OTHER_NOTE)),
        (MemoryUnshare(), MemoryUnshare(NOTE)),
        (StorageUnshare("a"), StorageUnshare("b", agent="bob")),
        (AccessGroupAdd("team", "bob"), AccessGroupAdd("team", "bob", "admin")),
        (AccessGroupAdd("team", "bob"), AccessGroupAdd("team", "eve")),
        (StorageWrite("a.txt", "new"), StorageWrite("a.txt", "newer")),
        (StorageMove("a", "b"), StorageMove("a", "c")),
        (MemoryRemove(NOTE), MemoryRemove(OTHER_NOTE)),
    ],
)
def test_anything_else_is_refused(asked: Body, edited: Body) -> None:
    with pytest.raises(AccessDenied, match="only narrow"):
        check_narrower(asked, edited)


PARTS = st.lists(st.sampled_from(["a", "b", "..", ".", "a\u200b", "A"]), min_size=1, max_size=4)


@given(asked=PARTS, edited=PARTS | st.sampled_from(HOSTILE_PATHS).map(lambda path: [path]))
def test_no_path_leads_out_of_the_tree_that_was_asked_for(
    asked: list[str], edited: list[str]
) -> None:
    wide, narrow = "/".join(asked), "/".join(edited)
    try:
        check_narrower(StorageDelete(wide, recursive=True), StorageDelete(narrow, recursive=True))
    except AccessDenied:
        return
    if wide != narrow:  # which was asked for: its own operation says what it thinks of it
        assert (normal_path(narrow) + "/").startswith(normal_path(wide) + "/")
