"""The files that processes of a sandbox write, as the worker sees them.

In a sandbox they lie in memory, in file systems of the sandbox's own: Linux bounds these, counts
what is open and has no name any more as well, and takes all away with the sandbox. The worker comes
to them by descriptors. Without a sandbox they lie in a folder, whose files are counted.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from aios_workers.modules.tool.removal import remove_below

SPARE_BYTES = 1024**2  # that a tool's folder takes beyond its limit: so that who met it is told
SCRATCH = ("/tmp", "/dev/shm")  # that it has beside its workspace
BLOCK_BYTES = 512  # of which a file's size on the disk is told
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

T = TypeVar("T")


class SandboxLost(Exception):
    """The sandbox has ended, and what was written in it is gone."""


@dataclass(frozen=True, slots=True)
class FileUsage:
    """What files take."""

    size_bytes: int
    count: int  # of files and folders


class SandboxFiles:
    """What one sandbox's processes write. Closed when its last process has ended."""

    def __init__(
        self, folder: Path, scratch: Sequence[Path] = (), opened: Sequence[int] = ()
    ) -> None:
        """Take the folder that processes work in.

        Args:
            folder: As this process comes to it; never a link.
            scratch: Where else they write.
            opened: Descriptors that are closed with this. The first are of file systems that
                the sandbox alone writes to: the folder's, and one for each place of `scratch`.
        """
        self._folder = folder
        self._opened = tuple(opened)
        self._in_memory = self._opened[: 1 + len(scratch)]
        # Folders that others are mounted on are among these: taken away, they would be unmounted.
        self._before = {place: frozenset(_names(place)) for place in (folder, *scratch)}
        self._lock = threading.Lock()
        self._users = 0
        self._is_closed = False

    @classmethod
    def of_process(cls, pid: int, folder: Path) -> "SandboxFiles":
        """Return what processes of a sandbox write; one of them has this number, as we see it.

        Raises:
            OSError: This process may not look there.
        """
        opened: list[int] = []
        try:
            # What a folder is mounted on keeps its name; by it the folder itself is never a link.
            for path in (folder, *SCRATCH, folder.parent, "/"):
                opened += [os.open(f"/proc/{pid}/root{path}", _PLACE)]
        except BaseException:
            for each in opened:
                os.close(each)
            raise
        above, root = (Path(f"/proc/{os.getpid()}/fd/{each}") for each in opened[-2:])
        return cls(above / folder.name, [root / each.lstrip("/") for each in SCRATCH], opened)

    @contextmanager
    def open(self) -> Iterator[Path]:
        """Yield the folder: for as long it is this one and no other.

        Raises:
            SandboxLost: It is closed, or its sandbox has ended meanwhile: what was seen of the
                folder then is not what was in it.
        """
        with self._lock:
            if self._is_closed:
                raise SandboxLost
            self._users += 1
        try:
            # Whatever somebody inside has made of it.
            with contextlib.suppress(OSError):
                os.chmod(self._folder, 0o700)
            yield self._folder
            self._check()
        finally:
            with self._lock:
                self._users -= 1
                self._close_unused()

    def _check(self) -> None:
        if self._in_memory:
            seen, own = self._folder.stat(), os.fstat(self._in_memory[0])
            if (seen.st_dev, seen.st_ino) != (own.st_dev, own.st_ino):
                raise SandboxLost

    async def read(self, name: str, look: Callable[[Path], T]) -> T:
        """Have a function look at what is there by a name, in a thread."""
        return await asyncio.to_thread(self._looked, name, look)

    def _looked(self, name: str, look: Callable[[Path], T]) -> T:
        with self.open() as folder:
            return look(folder / name)

    def usage(self, most: FileUsage) -> FileUsage:
        """Return what the folder's files take, and how many there are, beside it as well.

        Where that is more than a bound, perhaps not all is counted.
        """
        with self.open() as folder:
            if not self._in_memory:
                return _counted(folder, most)
            found = [os.fstatvfs(each) for each in self._in_memory]
        own = found[0]  # beside it Linux refuses what is beyond the limit
        return FileUsage(
            (own.f_blocks - own.f_bfree) * own.f_frsize,
            sum(one.f_files - one.f_ffree for one in found),
        )

    async def sweep(self, kept: Collection[str]) -> None:
        """Take away what calls have left: what has other names, and beside it where none is kept.

        What was there when the first call began stays.
        """
        with contextlib.suppress(SandboxLost), self.open():
            for place, before in self._before.items():
                if kept and place != self._folder:
                    continue
                left = [name for name in _names(place) if name not in before and name not in kept]
                if len(left) == 1:  # most calls leave nothing but an empty folder: microseconds
                    with contextlib.suppress(OSError):
                        os.rmdir(place / left[0])
                        continue
                if left:
                    await asyncio.to_thread(remove_below, place, left)

    def close(self) -> None:
        """Let go of it, as soon as nobody looks at it."""
        with self._lock:
            self._is_closed = True
            self._close_unused()

    def _close_unused(self) -> None:
        if self._is_closed and not self._users:
            opened, self._opened = self._opened, ()
            for each in opened:
                os.close(each)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _counted(folder: Path, most: FileUsage) -> FileUsage:
    """Return what the files take that have a name: those that have none are not seen."""
    size = count = 0
    for _, folders, names, opened in os.fwalk(folder):
        count += len(folders) + len(names)
        for name in names:
            with contextlib.suppress(OSError):
                size += os.stat(name, dir_fd=opened, follow_symlinks=False).st_blocks * BLOCK_BYTES
        if size > most.size_bytes or count > most.count:
            break
    return FileUsage(size, count)
