"""The files of one session: put there from storage, compared with it, written back to it.

What was put there is kept beside the session's folder, where nothing of the session sees it.
"""

import asyncio
import base64
import hashlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import mkdtemp

import msgspec
from msgspec.structs import replace

from aios_broker.comparing import MAX_COMPARED_BYTES, Comparer, Pair
from aios_broker.contract.errors import KernelError, WorkspaceLimit
from aios_broker.contract.names import MAX_TEXT_BYTES
from aios_broker.contract.storage import MAX_CHANGES, Entry, FileChange, StorageApply
from aios_broker.contract.syscall import Syscall
from aios_broker.contract.workspace import ChangedFile, Manifest, WorkspaceChanges
from aios_broker.places import Holder
from aios_workers.modules.tool.sandbox_files import SandboxFiles
from aios_workers.modules.tool.sessions.session_calls import Calls
from aios_workers.modules.tool.workspace.changes import (
    Change,
    Changes,
    KeptFile,
    changes_of,
)
from aios_workers.modules.tool.workspace.fetching import Fetching
from aios_workers.modules.tool.workspace.folder import clear, put, remove, take
from aios_workers.modules.tool.workspace.patterns import normal_pattern
from aios_workers.modules.tool.workspace.walk import Walk

MOST_DIFFS = 50  # of one result
MOST_DIFF_CHARACTERS = 256 * 1024
SPARE_BYTES = 64 * 1024  # of a syscall, beside what it writes
MOST_COMMIT_BYTES = MAX_TEXT_BYTES - SPARE_BYTES  # of one commit, as it is encoded
MOST_FILE_BYTES = 3 * MOST_COMMIT_BYTES // 4  # so that base64 has room
KEEP_BYTES = 16 * 1024**2  # of one look


class SessionFiles:
    """What was put into one session's folder, and what is there now."""

    def __init__(self, beside: Path, manifest: Manifest, calls: Calls, comparer: Comparer) -> None:
        """Take where copies are kept; there is no folder yet (`folder` is set when there is).

        Raises:
            InvalidPath: What the manifest ignores is no pattern.
        """
        self.folder: SandboxFiles | None = None
        self._calls = calls
        self._comparer = comparer
        self._ignore = [normal_pattern(one, "body.workspace.ignore") for one in manifest.ignore]
        self._manifest = manifest
        self._kept = Path(mkdtemp(prefix="kept-", dir=beside))
        self._placed: dict[str, KeptFile] = {}
        self._foreign: dict[str, str] = {}

    async def fetch(self, syscall: Syscall, most_bytes: int) -> None:
        """Put the manifest's files there; `most_bytes`: that the session may have.

        Raises:
            WorkspaceLimit: They are more than there may be.
            NotFound: There is nothing that a pattern means.
        """
        fetching = Fetching(self._calls, syscall, self._manifest)
        listed = await fetching.listed(most_bytes)
        self._foreign = listed.foreign
        self._placed = await fetching.read(listed, self._place)

    def _opened(self) -> AbstractContextManager[Path]:
        assert self.folder is not None
        return self.folder.open()

    def _place(self, placed: KeptFile, content: bytes) -> None:
        self._keep(placed.sha256, content)
        with self._opened() as folder:
            put(folder, placed.path, content)

    def _keep(self, sha256: str, content: bytes) -> None:
        kept = self._kept / sha256
        if not kept.exists():
            kept.write_bytes(content)

    async def put_back(self) -> None:
        """Put all files there again; the folder is empty."""
        await asyncio.to_thread(self._put_back, list(self._placed.values()))

    def _put_back(self, placed: Sequence[KeptFile]) -> None:
        with self._opened() as folder:
            for one in placed:
                put(folder, one.path, (self._kept / one.sha256).read_bytes())

    async def changes(
        self, holder: Holder, session: str, paths: Sequence[str], *, diff: bool
    ) -> WorkspaceChanges:
        """Tell what differs.

        Raises:
            WorkspaceLimit: There are more files than are looked at.
        """
        found = await self.look(paths)
        shown = [one.shown for one in found.files]
        cut = await self._add_diffs(holder, found.files, shown) if diff else False
        return WorkspaceChanges(session, tuple(shown), found.ignored, cut)

    async def look(self, paths: Sequence[str]) -> Changes:
        """Return what differs; `paths`: only these."""
        wanted = [normal_pattern(one, "body.paths") for one in paths]
        return await asyncio.to_thread(self._looked, wanted)

    def _looked(self, paths: Sequence[str]) -> Changes:
        look = Walk(
            {path: one.size_bytes for path, one in self._placed.items()},
            {path: one.sha256 for path, one in self._placed.items()},
            MOST_FILE_BYTES,
            KEEP_BYTES,
        )
        with self._opened() as folder:
            found = look.at(folder)
        return changes_of(
            self._placed,
            found,
            ignore=self._ignore,
            paths=paths,
            foreign=self._foreign,
            most_bytes=MOST_FILE_BYTES,
        )

    async def _add_diffs(
        self, holder: Holder, found: Sequence[Change], shown: list[ChangedFile]
    ) -> bool:
        """Give files their diffs; return whether some have none for want of room."""
        made, left = 0, MOST_DIFF_CHARACTERS
        for at, one in enumerate(found):
            if one.is_refused or (one.content is None and one.shown.state != "removed"):
                continue
            if made == MOST_DIFFS or left <= 0:
                return True
            text = await self._diff(holder, one)
            made += 1
            shown[at] = replace(shown[at], diff=text[:left])
            left -= len(text)
        return left < 0

    async def _diff(self, holder: Holder, one: Change) -> str:
        before = b""
        if one.placed is not None:
            if one.placed.size_bytes > MAX_COMPARED_BYTES:
                return ""
            before = await asyncio.to_thread((self._kept / one.placed.sha256).read_bytes)
        after = one.content or b""
        if len(after) > MAX_COMPARED_BYTES:
            return ""
        try:
            pair = Pair(before.decode(), after.decode(), one.shown.path, one.shown.path)
        except UnicodeDecodeError:
            return ""
        text = await self._comparer.unified(holder, pair)
        return pair.hidden() if text is None else text

    async def committed(
        self, syscall: Syscall, changes: Iterable[FileChange], entries: Iterable[Entry]
    ) -> None:
        """Take what a commit has written as what was put there. Done twice, it is the same.

        A file that another commit has written since is left as that one has it.
        """
        for change, entry in zip(changes, entries, strict=True):
            path = change.path.removeprefix("/")
            before = self._placed.get(path)
            if not _is_of(before, change):
                continue
            if change.content is None:
                self._placed.pop(path, None)
            elif await self._is_kept(syscall, entry, _bytes_of(change)):
                self._placed[path] = KeptFile(path, entry.version, entry.size_bytes, entry.sha256)

    async def _is_kept(self, syscall: Syscall, entry: Entry, content: bytes) -> bool:
        """Keep what storage has of a file; return whether that was possible.

        Where not, the file stays a change, and committed once more it is a conflict. What is
        written is written: who asked for the commit hears that in any case.
        """
        try:
            if entry.sha256 != hashlib.sha256(content).hexdigest():  # a person wrote something else
                content = await Fetching(self._calls, syscall, self._manifest).content_of(entry)
            await asyncio.to_thread(self._keep, entry.sha256, content)
        except (KernelError, OSError):  # it changes meanwhile, or the session has ended
            return False
        return True

    async def discard(self, session: str, paths: Sequence[str]) -> WorkspaceChanges:
        """Put back what differs.

        Raises:
            ModuleError: Somebody keeps that from being done.
        """
        try:
            found = await self.look(paths)
        except WorkspaceLimit:
            if paths:
                raise
            await asyncio.to_thread(self._clear)  # more than can be told
            await self.put_back()
            return WorkspaceChanges(session)
        await asyncio.to_thread(self._restore, found.files)
        shown = (replace(one.shown, outcome="restored") for one in found.files)
        return WorkspaceChanges(session, tuple(shown), found.ignored)

    def _clear(self) -> None:
        with self._opened() as folder:
            clear(folder)

    def _restore(self, found: Sequence[Change]) -> None:
        taken = [one.path for one in found if one.placed is None and one.path]
        with self._opened() as folder:
            for path in taken:
                take(folder, path)
        known = {one.path: one.placed for one in found if one.placed is not None}
        known |= {  # where a link was in the place of its folder
            path: placed
            for path, placed in self._placed.items()
            if any(path.startswith(f"{each}/") for each in taken)
        }
        self._put_back(list(known.values()))

    async def close(self) -> None:
        """Forget what was put there."""
        await asyncio.to_thread(remove, self._kept)


def changes_of_storage(taken: Sequence[Change]) -> tuple[FileChange, ...]:
    """Return what writes these files, and deletes those that are removed.

    Raises:
        WorkspaceLimit: They are more than one syscall takes.
    """
    if len(taken) > MAX_CHANGES:
        raise _too_much(f"{len(taken)} files", f"{MAX_CHANGES}")
    if any(one.content is None and one.shown.state != "removed" for one in taken):
        raise _too_much(f"more than {KEEP_BYTES} bytes", f"{MOST_COMMIT_BYTES}")
    changes = tuple(map(_change, taken))
    if (size := len(msgspec.json.encode(StorageApply(changes)))) > MOST_COMMIT_BYTES:
        raise _too_much(f"{size} bytes as they are sent", f"{MOST_COMMIT_BYTES}")
    return changes


def _change(one: Change) -> FileChange:
    path, placed = f"/{one.path}", one.placed
    if_version = placed.version if placed is not None else 0
    if_sha256 = placed.sha256 if placed is not None else None
    if one.content is None:
        return FileChange(path, None, "utf-8", if_version, if_sha256)
    if b"\0" not in one.content:
        try:
            return FileChange(path, one.content.decode(), "utf-8", if_version, if_sha256)
        except UnicodeDecodeError:
            pass
    return FileChange(path, base64.b64encode(one.content).decode(), "base64", if_version, if_sha256)


def _bytes_of(change: FileChange) -> bytes:
    text = change.content or ""
    return base64.b64decode(text) if change.encoding == "base64" else text.encode()


def _is_of(placed: KeptFile | None, change: FileChange) -> bool:
    """Whether a change was made from what is placed."""
    if placed is None:
        return change.if_version == 0
    return (placed.version, placed.sha256) == (change.if_version, change.if_sha256)


def _too_much(has: str, most: str) -> WorkspaceLimit:
    return WorkspaceLimit(
        f"it would write {has}; one commit takes {most}",
        field="body.paths",
        remedy="commit a part at a time (paths), or delete what is not to be kept",
    )
