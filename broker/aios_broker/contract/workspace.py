"""Files of an agent's storage in an exec session, and what its code made of them.

A manifest says which files are put into the session's folder, each at its own path. They are
copies: what is changed there is changed in storage by `exec.commit` alone, and `exec.discard` takes
it back.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from aios_broker.contract.names import AgentName, Request, Row
from aios_broker.contract.storage import Path

MAX_FILES = 2_000
MAX_BYTES = 256 * 1024**2

# A path, of a file or of a directory with all below it; or one with `*` and `?` within a part,
# `**` for any number of parts.
Pattern = Path
Patterns = Annotated[Row[Pattern], Meta(max_length=64)]


class ForeignFiles(Request, frozen=True):
    """Files of another agent that may be read; they lie below `shared/OWNER`."""

    owner: AgentName
    files: Annotated[Row[Pattern], Meta(min_length=1, max_length=64)]


class Manifest(Request, frozen=True):
    """What is put into a session's folder, and how much of it there may be."""

    files: Patterns = ()  # of the agent's own namespace, what is mounted there too
    shared: Annotated[Row[ForeignFiles], Meta(max_length=16)] = ()
    # What is told of no change, unless it is in the manifest: what programs leave on their way.
    ignore: Patterns = ("**/__pycache__/**", ".cache", ".config", ".local")
    max_files: Annotated[int, Meta(ge=1, le=MAX_FILES)] = 500
    max_bytes: Annotated[int, Meta(ge=1, le=MAX_BYTES)] = 32 * 1024**2


class ChangedFile(Struct, frozen=True, omit_defaults=True):
    """One file that is not as the manifest has it, and what became of it."""

    path: str  # in the agent's namespace
    # refused: what storage cannot have (a link, a device, such a name), or this agent not change.
    state: Literal["added", "changed", "removed", "refused"]
    # By a commit or a discard; empty: it was looked at.
    outcome: Literal["", "written", "deleted", "restored", "left"] = ""
    why: str = ""  # it is refused
    version: int = 0  # of the manifest's file, after a commit of the new one; 0: there is none
    size_bytes: int = 0
    sha256: str = ""
    diff: str = ""  # unified, where both are texts of up to 256 KiB


class WorkspaceChanges(Struct, frozen=True, omit_defaults=True, tag="exec.changes"):
    """What differs from the manifest, by path."""

    session: str
    changes: tuple[ChangedFile, ...] = ()
    ignored: int = 0  # files and directories that are told of no more closely
    diff_cut: bool = False  # there are more diffs than a result has
