"""What is to be had at an address: files, their sizes and checksums, the licence."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file, before it is here."""

    name: str  # on this machine, too
    url: str
    size_bytes: int | None = None  # None: its server does not say
    sha256: str | None = None  # None: nobody has published it
    headers: Mapping[str, str] = field(default_factory=dict)  # httpx keeps keys to their host


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """All files of a model."""

    source: str  # as it is shown and written down: no secret is in it
    folder: tuple[str, ...]  # below the folder of models
    files: tuple[RemoteFile, ...]  # the first is the one that llama.cpp is told
    licence: str | None = None

    @property
    def size_bytes(self) -> int | None:
        """The sum; None where a file's size is not known."""
        sizes = [file.size_bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)
