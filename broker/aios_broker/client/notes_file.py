"""Notes in a file and out of it: JSON Lines, a note a line, a batch at a time."""

import os
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import msgspec

from aios_broker.contract.errors import InvalidConfig, InvalidSyscall
from aios_broker.contract.json_text import (
    DuplicateKey,
    is_nested_deeper,
    refuse_duplicate_keys,
)
from aios_broker.contract.memory import (
    MemoryDump,
    MemoryRestore,
    NoteRecord,
    NoteRecords,
    Restored,
)
from aios_broker.contract.names import MAX_TEXT_BYTES
from aios_broker.contract.syscall import MAX_LEVELS, Body, decode_failure

Send = Callable[[Body, int], Awaitable[Any]]  # a body, and the how many-th it is
NotesFile = str | os.PathLike[str] | BinaryIO

BATCH_RECORDS = 200
BATCH_BYTES = 128 * 1024  # one record may have more, and goes alone
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPARE_LEVELS = 8  # of a syscall around a record
_RECORD = re.compile(r"body\.records[.\[](?P<at>\d+)\]?\.?(?P<field>.*)")
_decoder = msgspec.json.Decoder(NoteRecord)


class ExportFields(TypedDict, total=False):
    """Which notes are meant: the fields of `MemoryDump`; ranges and defaults stand there."""

    owner: str | None
    tags: tuple[str, ...]
    any_tags: tuple[str, ...]
    category: str | None
    metadata: dict[str, object] | None
    in_program: str | None
    since: float | None
    until: float | None


async def export_notes(send: Send, file: NotesFile, only: ExportFields) -> int:
    """Write notes into a file, in the order of adding; return how many.

    A file at a path is there when all of it is written; until then what was there before is.
    """
    count = 0
    with _written(file) as out:
        async for record in _records(send, only):
            out.write(msgspec.json.encode(record) + b"\n")
            count += 1
    return count


async def _records(send: Send, only: ExportFields) -> AsyncIterator[NoteRecord]:
    after, at = None, 0
    while True:
        page: NoteRecords = await send(MemoryDump(**only, after=after), at)
        for record in page.records:
            yield record
        if not page.more:
            return
        after, at = page.records[-1].id, at + 1


async def import_notes(send: Send, file: NotesFile) -> Restored:
    """Add the notes of a file to the agent's own, those that are not there; return how many.

    Raises:
        InvalidSyscall: a line is no note; `field` names the line. The batches before it are in.
    """
    added = existing = expired = 0
    for at, batch in enumerate(_batches(file)):
        body = MemoryRestore(tuple(record for _, record in batch))
        try:
            done: Restored = await send(body, at)
        except InvalidSyscall as error:
            raise _of_line(error, [number for number, _ in batch]) from error
        added += done.added
        existing += done.existing
        expired += done.expired
    return Restored(added, existing, expired)


def _of_line(error: InvalidSyscall, numbers: list[int]) -> InvalidSyscall:
    """Return an error about a record of a batch as one about its line."""
    named = _RECORD.match(error.field or "")
    if named is not None:
        number, field = numbers[int(named["at"])], named["field"]
        return _refused(number, field, error.message, error.remedy)
    return _refused(numbers[0], "", error.message, error.remedy) if len(numbers) == 1 else error


def _refused(number: int, field: str, message: str, remedy: str | None) -> InvalidSyscall:
    return InvalidSyscall(
        message,
        field=f"line {number}, {field}" if field else f"line {number}",
        remedy=f"{remedy or 'correct it'}, and import again: what is in is not added twice",
    )


def _batches(file: NotesFile) -> Iterator[list[tuple[int, NoteRecord]]]:
    """Yield the records of a file with their lines' numbers; only one batch is held."""
    batch: list[tuple[int, NoteRecord]] = []
    size_bytes = 0
    with _read(file) as lines:
        for number, line in enumerate(_lines(lines), 1):
            if not line.strip():
                continue
            if batch and (len(batch) == BATCH_RECORDS or size_bytes + len(line) > BATCH_BYTES):
                yield batch
                batch, size_bytes = [], 0
            batch.append((number, _record(number, line)))
            size_bytes += len(line)
    if batch:
        yield batch


def _lines(lines: BinaryIO) -> Iterator[bytes]:
    line = lines.readline(MAX_TEXT_BYTES + 1).removeprefix(_BYTE_ORDER_MARK)
    while line:
        yield line
        line = lines.readline(MAX_TEXT_BYTES + 1)


def _record(number: int, line: bytes) -> NoteRecord:
    """Return the note that a line is.

    Raises:
        InvalidSyscall: it is none.
    """
    if len(line) > MAX_TEXT_BYTES:
        raise _refused(
            number, "", f"it has more than {MAX_TEXT_BYTES} bytes", "write a note a line, shorter"
        )
    try:
        if is_nested_deeper(line, MAX_LEVELS - _SPARE_LEVELS):
            raise _refused(number, "", "it is nested too deeply", "make it flatter")
        record = _decoder.decode(line)
        refuse_duplicate_keys(line)
    except (msgspec.DecodeError, UnicodeDecodeError, DuplicateKey) as error:
        message, field = decode_failure(error)
        raise _refused(number, field, message, "write each note as memory.dump gives it") from error
    return record


@contextmanager
def _written(file: NotesFile) -> Iterator[BinaryIO]:
    if not isinstance(file, str | os.PathLike):
        yield file
        return
    path = Path(file).resolve()
    try:
        if path.exists() and not path.is_file():  # a pipe, a device: nothing takes its place
            with path.open("wb") as opened:
                yield opened
            return
        with _replacing(path) as opened:
            yield opened
    except OSError as error:
        raise _no_file(path, "written", error) from error


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file beside a path that takes its place at the end, unless something failed."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".aios-notes-")
    try:
        with open(descriptor, "wb") as opened:
            yield opened
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def _read(file: NotesFile) -> Iterator[BinaryIO]:
    if not isinstance(file, str | os.PathLike):
        yield file
        return
    try:
        with Path(file).open("rb") as opened:
            yield opened
    except OSError as error:
        raise _no_file(Path(file), "read", error) from error


def _no_file(path: Path, what: str, error: OSError) -> InvalidConfig:
    return InvalidConfig(
        f"{path} cannot be {what}: {error.strerror}", field="file", remedy="name another one"
    )
