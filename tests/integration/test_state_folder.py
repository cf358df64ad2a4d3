"""The folder of shared KV states: what is found is what was written, whoever dies or interferes."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aios_broker.contract.errors import InvalidConfig
from aios_workers.llm.cores.llama.kv_state import KvState, StateRefused, file_bytes
from aios_workers.llm.cores.llama.state_folder import (
    MAX_AGE_S,
    MAX_WRITING_S,
    SETTING,
    NoRoom,
    StateFolder,
    check_folder,
)
from tests.state_writer import KEY, state_of
from tests.waiting import wait_until

WRITER = Path(__file__).resolve().parents[1] / "state_writer.py"
MANY = 100_000_000
IDS = tuple(range(5, 45))
STATE = KvState(IDS, b"0123456789" * 1_000)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StateFolder]:
    folder = StateFolder.open(tmp_path / "kv", KEY, MANY)
    yield folder
    folder.close()


def write(folder: StateFolder, request_id: str, state: KvState) -> int:
    return folder.write(folder.reserve(request_id, len(state.ids)), state)


def read(
    folder: StateFolder, request_id: str, known: tuple[int, ...] = IDS, beyond_tokens: int = 0
) -> KvState | None:
    [entry] = folder.entries_of(request_id)
    return folder.read(entry, known, beyond_tokens=beyond_tokens)


def file_of(folder: StateFolder, request_id: str) -> Path:
    [entry] = folder.entries_of(request_id)
    return entry.path


def names(folder: StateFolder, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.path.glob(pattern))


def start_writer(path: Path, *numbers: int) -> "subprocess.Popen[str]":
    command = [sys.executable, str(WRITER), str(path), *map(str, numbers)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def said(writer: "subprocess.Popen[str]") -> list[str]:
    output, _ = writer.communicate(timeout=50)
    assert writer.returncode == 0
    return output.split("\n")[:-1]


# What is read.


def test_what_was_written_is_read(folder: StateFolder) -> None:
    used_bytes = write(folder, "a", STATE)
    assert read(folder, "a") == replace(STATE, shared=True)
    assert used_bytes == file_bytes(STATE) == file_of(folder, "a").stat().st_size
    assert folder.entries_of("b") == []


def test_files_are_the_owners_alone(folder: StateFolder) -> None:
    write(folder, "a", STATE)
    modes = {path.stat().st_mode & 0o777 for path in folder.path.iterdir()}
    assert (modes, folder.path.stat().st_mode & 0o777) == ({0o600}, 0o700)


def test_only_a_shared_beginning_that_saves_something_is_read(folder: StateFolder) -> None:
    write(folder, "a", STATE)
    assert read(folder, "a", (*IDS, 1, 2)) == replace(STATE, shared=True)
    assert read(folder, "a", IDS, beyond_tokens=len(IDS)) is None
    others = (*IDS[:10], 999, *IDS[11:])
    assert read(folder, "a", others, beyond_tokens=10) is None
    assert read(folder, "a", others, beyond_tokens=9) == replace(STATE, shared=True)


@pytest.mark.parametrize("kept", [0, 10, 54, 55, 56, 214, 215, 5_000, 10_214])
def test_a_truncated_file_is_refused(folder: StateFolder, kept: int) -> None:
    write(folder, "a", STATE)
    path = file_of(folder, "a")
    assert path.stat().st_size == 56 + 4 * 40 + 10_000
    os.truncate(path, kept)
    with pytest.raises(StateRefused):
        read(folder, "a")


def test_a_longer_file_is_refused(folder: StateFolder) -> None:
    write(folder, "a", STATE)
    with file_of(folder, "a").open("ab") as file:
        file.write(b"x")
    with pytest.raises(StateRefused, match="bytes where"):
        read(folder, "a")


def test_any_changed_byte_is_noticed(folder: StateFolder) -> None:
    """In every byte of what stands before the state, and here and there in it."""
    write(folder, "a", STATE)
    path = file_of(folder, "a")
    whole = path.read_bytes()
    for place in (*range(230), *range(230, len(whole), 997), len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        known = IDS if not 56 <= place < 216 else tuple(_ids_of(bytes(changed)))
        with pytest.raises(StateRefused):
            read(folder, "a", known)
    path.write_bytes(whole)
    assert read(folder, "a") is not None


def _ids_of(data: bytes) -> Iterator[int]:
    """The ids as a damaged file has them: not even who knows these may use it."""
    for start in range(56, 56 + 4 * len(IDS), 4):
        yield int.from_bytes(data[start : start + 4], "little", signed=True)


def test_another_model_sees_nothing_and_a_renamed_file_is_refused(folder: StateFolder) -> None:
    write(folder, "a", STATE)
    other = StateFolder.open(folder.path, b"o" * 32, MANY)
    assert other.entries_of("a") == []
    write(other, "a", STATE)
    file_of(other, "a").rename(file_of(folder, "a"))
    with pytest.raises(StateRefused, match="another model"):
        read(folder, "a")
    other.close()


def test_another_version_is_refused(folder: StateFolder) -> None:
    write(folder, "a", STATE)
    path = file_of(folder, "a")
    data = bytearray(path.read_bytes())
    data[7] = 2
    path.write_bytes(data)
    with pytest.raises(StateRefused, match="of version 2"):
        read(folder, "a")


# What stays and what goes.


def test_a_new_state_replaces_the_older_ones_of_its_request(folder: StateFolder) -> None:
    write(folder, "a", STATE)
    write(folder, "b", STATE)
    longer = KvState((*IDS, 7), STATE.data)
    write(folder, "a", longer)
    assert read(folder, "a", longer.ids) == replace(longer, shared=True)
    folder.drop("a")
    assert folder.entries_of("a") == []
    assert read(folder, "b") is not None


def test_the_least_recently_used_go_when_the_budget_is_full(tmp_path: Path) -> None:
    size_bytes = file_bytes(STATE)
    folder = StateFolder.open(tmp_path / "kv", KEY, 3 * size_bytes)
    other = StateFolder.open(tmp_path / "kv", b"o" * 32, 3 * size_bytes)  # they share the budget
    for age_s, (owner, name) in enumerate([(folder, "new"), (other, "old"), (folder, "used")]):
        write(owner, name, STATE)
        used_at = time.time() - 10 * age_s
        os.utime(file_of(owner, name), (used_at, used_at))
    assert read(folder, "used") is not None  # which makes it the latest
    write(folder, "one more", STATE)
    assert other.entries_of("old") == []
    assert all(folder.entries_of(name) for name in ("new", "used", "one more"))
    with pytest.raises(NoRoom):
        write(folder, "large", KvState(IDS, bytes(4 * size_bytes)))
    assert (names(folder, "*.tmp"), len(names(folder, "*.kv"))) == ([], 3)
    folder.close()
    other.close()


def test_states_that_nobody_asks_for_go_by_age(folder: StateFolder) -> None:
    write(folder, "old", STATE)
    write(folder, "new", STATE)
    begun = folder.reserve("begun", 3)
    os.close(begun.fd)
    dead = folder.reserve("dead", 3)
    os.close(dead.fd)
    (folder.path / "x.new").touch()
    for path, age_s in (
        (file_of(folder, "old"), MAX_AGE_S),
        (dead.temporary, MAX_WRITING_S),
        (folder.path / "x.new", MAX_WRITING_S),
    ):
        os.utime(path, (time.time() - age_s - 1,) * 2)
    folder.sweep()
    assert names(folder, "*.kv") == [file_of(folder, "new").name]
    assert (names(folder, "*.tmp"), names(folder, "*.new")) == ([begun.temporary.name], [])


def test_what_is_not_ours_is_left_alone(folder: StateFolder) -> None:
    foreign = folder.path / "notes.txt"
    foreign.write_bytes(bytes(1_000))
    os.utime(foreign, (0, 0))
    write(folder, "a", STATE)
    folder.sweep()
    assert foreign.exists()


def test_a_folder_that_was_removed_is_made_again(folder: StateFolder) -> None:
    for path in folder.path.iterdir():
        path.unlink()
    folder.path.rmdir()
    assert folder.entries_of("a") == []
    assert not folder.has_company()
    write(folder, "a", STATE)
    assert read(folder, "a") is not None


def test_a_lock_that_is_held_for_too_long_is_not_waited_for(folder: StateFolder) -> None:
    with folder.locked(), pytest.raises(NoRoom, match="was held"):
        write(folder, "a", STATE)
    assert names(folder, "*.tmp") == []
    write(folder, "a", STATE)


# Who is there.


def test_company_is_a_living_core_of_the_same_key(folder: StateFolder) -> None:
    assert not folder.has_company()
    stranger = StateFolder.open(folder.path, b"o" * 32, MANY)
    assert not folder.has_company()
    friend = StateFolder.open(folder.path, KEY, MANY)
    assert folder.has_company()
    friend.close()
    assert not folder.has_company()
    stranger.close()


def test_one_that_was_killed_is_no_company(folder: StateFolder) -> None:
    writer = start_writer(folder.path, MANY, 1, 10_000_000, 1_000)
    assert writer.stdout is not None
    with writer, writer.stdout:
        assert writer.stdout.readline() == "begun\n"
        assert folder.has_company()
        assert len(names(folder, "*.here")) == 2
        writer.kill()
    assert not folder.has_company()
    assert len(names(folder, "*.here")) == 1, "the file of the dead one is left"


# Several processes, and what hurts them.


def test_processes_race_for_the_budget_and_for_the_same_files(folder: StateFolder) -> None:
    """All write the same requests, whose states differ in length; at no time is it too much."""
    data_bytes, fit = 50_000, 5
    max_bytes = fit * file_bytes(state_of("request 0", 60, data_bytes))
    writers = [start_writer(folder.path, max_bytes, 8, 60, data_bytes) for _ in range(3)]
    while any(writer.poll() is None for writer in writers):
        with contextlib.suppress(NoRoom), folder.locked():  # the lock may be much in demand
            assert sum(entry.size_bytes for entry in folder.entries()) <= max_bytes
        for number in range(8):
            check_states(folder, f"request {number}", data_bytes)
    written = sum(said(writer).count("written") for writer in writers)
    assert written > 120, "most states find room"
    assert sum(entry.size_bytes for entry in folder.entries()) <= max_bytes
    assert (names(folder, "*.tmp"), 0 < len(names(folder, "*.kv")) <= fit) == ([], True)


def check_states(folder: StateFolder, name: str, data_bytes: int) -> None:
    """Whatever can be read of a request is what one of the writers wrote."""
    for entry in folder.entries_of(name):
        if entry.being_written:
            continue
        try:
            state = folder.read(entry, tuple(range(200)), beyond_tokens=0)
        except FileNotFoundError:
            continue
        assert state == replace(state_of(name, entry.tokens, data_bytes), shared=True)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_writer_killed_half_way_leaves_no_half_state(folder: StateFolder, share: float) -> None:
    data_bytes = 80_000_000
    writer = start_writer(folder.path, MANY, 1, 1, data_bytes)

    def has_come_so_far() -> bool:
        sizes = [path.stat().st_blocks * 512 for path in folder.path.glob("*.tmp")]
        return any(size >= share * data_bytes for size in sizes) or bool(names(folder, "*.kv"))

    assert writer.stdout is not None
    with writer, writer.stdout:
        wait_until(has_come_so_far)
        writer.send_signal(signal.SIGKILL)
    check_states(folder, "request 0", data_bytes)
    for name in names(folder, "*.tmp"):
        # Its room was taken at once: others cannot have counted on it meanwhile.
        whole_bytes = file_bytes(state_of("request 0", 1, data_bytes))
        assert (folder.path / name).stat().st_size in {0, whole_bytes}
        os.utime(folder.path / name, (0, 0))
    write(folder, "a", STATE)  # makes room, and removes what has no writer
    assert names(folder, "*.tmp") == []


def test_a_file_that_may_not_grow_is_an_error_and_leaves_nothing(folder: StateFolder) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            write(folder, "a", STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (names(folder, "*.tmp"), names(folder, "*.kv")) == ([], [])


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """On a file system of 4 MB in a mount namespace, which something else has filled."""
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount a small file system")
    script = (
        'mount -t tmpfs -o size=4m none "$0" && head -c 3000000 /dev/zero > "$0/filler" && '
        '"$1" "$2" "$0/kv" 100000000 1 2 1500000; ls -A "$0/kv"'
    )
    ended = subprocess.run(
        [*mount, script, str(tmp_path), sys.executable, str(WRITER)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    assert ended.stdout.split("\n")[:-1] == [
        "begun",
        *[f"OSError {errno.ENOSPC}"] * 2,
        "budget.lock",
    ]


def test_a_small_file_system_is_never_filled(tmp_path: Path) -> None:
    folder = StateFolder.open(tmp_path / "kv", KEY, 1 << 60)
    system = os.statvfs(tmp_path)
    assert folder.max_bytes <= system.f_blocks * system.f_frsize // 2
    folder.close()


# Settings.


@pytest.mark.parametrize("kind", ["a file", "open to others", "below a file", "read only"])
def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "kv"
    match kind:
        case "a file":
            path.touch()
        case "below a file":
            path.touch()
            path = path / "below"
        case "open to others":
            path.mkdir()
            path.chmod(0o750)
        case _:
            path = Path("/proc/aios-kv")
    with pytest.raises(InvalidConfig) as caught:
        check_folder(path)
    assert (caught.value.field, bool(caught.value.remedy)) == (SETTING, True)
    assert str(path) in str(caught.value)
