"""What storage must be: files, versions, directories and grants in plain dictionaries."""

from __future__ import annotations

from dataclasses import dataclass, field

from aios_broker.contract.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidPath,
    InvalidSyscall,
    KernelError,
    NotFound,
)


def moved(path: str, source: str, to: str) -> str:
    """Return where a path is once `source` is `to`."""
    inside = path == source or path.startswith(source + "/")
    return to + path[len(source) :] if inside else path


@dataclass
class File:
    """One file: its kept versions by number, and what is granted on it."""

    versions: dict[int, str]
    newest: int = 1
    verbs: frozenset[str] = frozenset()

    @property
    def content(self) -> str:
        return self.versions[self.newest]

    def add(self, content: str, keep: int) -> None:
        self.newest += 1
        self.versions[self.newest] = content
        self.versions.pop(self.newest - keep, None)


@dataclass
class Model:
    """The namespace of one owner; `verbs` are those of the one other agent."""

    keep: int
    files: dict[str, File] = field(default_factory=dict)
    directories: dict[str, frozenset[str]] = field(default_factory=dict)

    def verbs_at(self, path: str) -> frozenset[str]:
        """What the other agent may do there; where nothing is, the directory above decides."""
        verbs = self.files[path].verbs if path in self.files else frozenset()
        for directory, granted in self.directories.items():
            if path == directory or path.startswith(directory.rstrip("/") + "/"):
                verbs |= granted
        return verbs

    def require(self, path: str, verb: str, *, own: bool) -> None:
        verbs = self.verbs_at(path)
        if own or verb in verbs:
            return
        raise self.error(AccessDenied if "read" in verbs else NotFound)

    def create(self, path: str, content: str, *, own: bool) -> None:
        self.require(path, "write", own=own)
        self.check_way(path)
        if path in self.files or path in self.directories:
            raise self.error(AlreadyExists)
        self.make_way(path)
        self.files[path] = File({1: content})

    def write(self, path: str, content: str, *, own: bool) -> None:
        self._change(path, content, own=own, append=False)

    def append(self, path: str, content: str, *, own: bool) -> None:
        self._change(path, content, own=own, append=True)

    def read(self, path: str, version: int | None, *, own: bool) -> str:
        self.require(path, "read", own=own)
        if path in self.directories:
            raise self.error(InvalidPath)
        if path not in self.files:
            raise self.error(NotFound)
        file = self.files[path]
        if version is not None and version not in file.versions:
            raise self.error(NotFound)
        return file.versions[version or file.newest]

    def move(self, path: str, to: str, *, overwrite: bool) -> None:
        self.check_source(path)
        self.check_way(to)
        if path == to:
            return
        if path in self.directories:
            if to.startswith(path + "/"):
                raise self.error(InvalidPath)
            self.check_target(to, overwrite=False)
            self.make_way(to)
            self.files = {moved(each, path, to): file for each, file in self.files.items()}
            self.directories = {
                moved(each, path, to): verbs for each, verbs in self.directories.items()
            }
            return
        self.check_target(to, overwrite=overwrite)
        file = self.files.pop(path)
        self.make_way(to)
        self.files[to] = file

    def copy(self, path: str, to: str, *, overwrite: bool) -> None:
        self.check_way(to)
        if path in self.directories:
            self.check_target(to, overwrite=False)
            if to == path or to.startswith(path + "/"):
                raise self.error(InvalidPath)
            self.make_way(to)
            self.directories[to] = frozenset()
            for each in [each for each in self.directories if each.startswith(path + "/")]:
                self.directories[to + each[len(path) :]] = frozenset()
            for each in [each for each in self.files if each.startswith(path + "/")]:
                self.files[to + each[len(path) :]] = File({1: self.files[each].content})
            return
        if path not in self.files:
            raise self.error(NotFound)
        if path == to:
            raise self.error(InvalidPath)
        self.check_target(to, overwrite=overwrite)
        if to in self.files:
            self.files[to].add(self.files[path].content, self.keep)
        else:
            content = self.files[path].content
            self.make_way(to)
            self.files[to] = File({1: content})

    def delete(self, path: str, *, recursive: bool) -> None:
        self.check_source(path)
        if path in self.files:
            del self.files[path]
            return
        inside = [
            each
            for kind in (self.files, self.directories)
            for each in kind
            if each.startswith(path + "/")
        ]
        if inside and not recursive:
            raise self.error(InvalidSyscall)
        for each in [path, *inside]:
            self.files.pop(each, None)
            self.directories.pop(each, None)

    def mkdir(self, path: str) -> None:
        self.check_way(path)
        if path in self.files:
            raise self.error(AlreadyExists)
        self.make_way(path)
        self.directories.setdefault(path, frozenset())

    def rollback(self, path: str, version: int) -> None:
        file = self.file_at(path)
        if version not in file.versions:
            raise self.error(NotFound)
        file.add(file.versions[version], self.keep)

    def share(self, path: str, verbs: frozenset[str]) -> None:
        if path in self.directories:
            self.directories[path] = verbs
        else:
            self.file_at(path).verbs = verbs

    def file_at(self, path: str) -> File:
        if path in self.directories:
            raise self.error(InvalidPath)
        if path not in self.files:
            raise self.error(NotFound)
        return self.files[path]

    def check_way(self, path: str) -> None:
        if any(path.startswith(file + "/") for file in self.files):
            raise self.error(InvalidPath)

    def check_source(self, path: str) -> None:
        self.check_way(path)
        if path not in self.files and path not in self.directories:
            raise self.error(NotFound)

    def check_target(self, to: str, *, overwrite: bool) -> None:
        if to in self.directories or (to in self.files and not overwrite):
            raise self.error(AlreadyExists)

    def make_way(self, path: str) -> None:
        self.directories.setdefault("/", frozenset())
        parts = path.split("/")
        for count in range(2, len(parts)):
            self.directories.setdefault("/".join(parts[:count]), frozenset())

    def kept_bytes(self) -> int:
        """What the owner is charged for: each content once."""
        kept = {text for file in self.files.values() for text in file.versions.values()}
        return sum(len(text.encode()) for text in kept)

    @staticmethod
    def error(kind: type[KernelError]) -> KernelError:
        return kind("the model refuses it")

    def _change(self, path: str, content: str, *, own: bool, append: bool) -> None:
        self.require(path, "write", own=own)
        self.check_way(path)
        if path in self.directories:
            raise self.error(AlreadyExists)
        if path not in self.files:
            self.make_way(path)
            self.files[path] = File({1: content})
        else:
            file = self.files[path]
            file.add(file.content + content if append else content, self.keep)
