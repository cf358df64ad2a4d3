"""Memory, files, groups and grants on the command line: from what is typed to the body."""

from pathlib import Path

import click
import msgspec
import pytest

from aios_broker.contract import access, memory, storage
from aios_broker.contract.syscall import Syscall, decode_syscall
from aios_cli.state_modules import FILES, GRANTS, GROUPS, MEMORY, Operation
from aios_cli.state_words import FLAGS, WORDS

NOTE = "ab" * 16
TABLES = {"memory": MEMORY, "files": FILES, "groups": GROUPS, "grants": GRANTS}


def body(group: str, name: str, *arguments: str) -> object:
    """Return the body that a command line makes, as the kernel reads it."""
    operation: Operation = TABLES[group][name]
    context = click.Command(name, params=operation.params()).make_context(name, [*arguments])
    syscall = Syscall("0" * 32, "ann", memory.MemoryStat())
    fields = {**msgspec.to_builtins(syscall), "body": operation.fields(context.params)}
    return decode_syscall(msgspec.json.encode(fields)).body


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("memory", "add", "tea", "--tag", "a", "--tag", "b", "--ttl-s", "5", "--evolve"),
            memory.MemoryAdd("tea", tags=("a", "b"), ttl_s=5.0, evolve=True),
        ),
        (("memory", "update", NOTE, "--tag", "a"), memory.MemoryUpdate(NOTE, tags=("a",))),
        (("memory", "rollback", NOTE, "2"), memory.MemoryRollback(NOTE, 2)),
        (("memory", "share", "--group", "team"), memory.MemoryShare(None, group="team")),
        (
            ("memory", "search", "tea", "-k", "3", "--mode", "keyword", "--shared"),
            memory.MemorySearch("tea", 3, "keyword", shared=True),
        ),
        (("files", "ls"), storage.StorageList()),
        (("files", "ls", "a", "-r"), storage.StorageList("a", recursive=True)),
        (("files", "write", "a", "x"), storage.StorageWrite("a", "x")),
        (("files", "diff", "a", "1"), storage.StorageDiff("a", 1)),
        (
            ("files", "write", "a", "x", "--if-version", "0", "--owner", "bob"),
            storage.StorageWrite("a", "x", if_version=0, owner="bob"),
        ),
        (
            ("files", "search", "x", "--by", "directory"),
            storage.StorageSearch("x", group_by="directory"),
        ),
        (
            ("files", "share", "a", "--to", "bob", "--verb", "write"),
            storage.StorageShare("a", agent="bob", verbs=("write",)),
        ),
        (
            ("groups", "add", "team", "bob", "--admin"),
            access.AccessGroupAdd("team", "bob", "admin"),
        ),
        (("groups", "add", "team", "bob"), access.AccessGroupAdd("team", "bob")),
        (
            ("grants", "give", "file", "a", "--to", "bob"),
            access.AccessGrant(access.ObjectRef("file", "a"), ("read", "search"), agent="bob"),
        ),
        (
            ("grants", "check", "block", "-", "read", "--owner", "bob"),
            access.AccessCheck(access.ObjectRef("block", "", "bob"), "read"),
        ),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_what_is_typed_arrives_in_the_body(arguments: tuple[str, ...], expected: object) -> None:
    group, name, *rest = arguments
    assert body(group, name, *rest) == expected


def test_content_that_is_no_text_travels_as_base64(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\xff\x00")

    assert body("files", "create", "x", "--from", str(path)) == storage.StorageCreate(
        "x", "/wA=", "base64"
    )
    for wrong in ((), ("text", "--from", str(path))):
        with pytest.raises(click.UsageError, match="CONTENT or --from"):
            body("files", "create", "x", *wrong)


def test_every_operation_says_what_each_of_its_options_means() -> None:
    for name, table in TABLES.items():
        for command, operation in table.items():
            for option in operation.params():
                if isinstance(option, click.Option):
                    assert option.help, f"{name} {command} {option.name}"


def test_every_word_and_flag_is_of_a_field_that_exists() -> None:
    fields = {
        field
        for table in TABLES.values()
        for operation in table.values()
        for field in operation.body.__struct_fields__
    }
    assert set(WORDS) | set(FLAGS) <= fields
