"""What differs between what was put into a folder and what is there now; pure."""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from aios_broker.contract.workspace import ChangedFile
from aios_workers.modules.tool.workspace.names import shown_path
from aios_workers.modules.tool.workspace.patterns import matches_any
from aios_workers.modules.tool.workspace.walk import FoundFile


class KeptFile(Struct, frozen=True):
    """A file as storage had it when it was put into the folder, or committed from there."""

    path: str  # within the folder; with a `/` before it, in the agent's namespace
    version: int
    size_bytes: int
    sha256: str
    foreign: str = ""  # why this agent's commits leave it alone; empty: they do not


class Change(Struct, frozen=True):
    """One file that is another now."""

    path: str  # within the folder, as the system gives it
    shown: ChangedFile
    placed: KeptFile | None = None
    content: bytes | None = None  # of what is there now, where it was kept

    @property
    def is_refused(self) -> bool:
        """Whether no commit takes it."""
        return self.shown.state == "refused"


class Changes(Struct, frozen=True):
    """All of them, by path; `ignored`: so many others are told of no more closely."""

    files: tuple[Change, ...]
    ignored: int = 0


def changes_of(
    placed: Mapping[str, KeptFile],
    seen: Iterable[FoundFile],
    *,
    ignore: Sequence[str] = (),
    paths: Sequence[str] = (),
    foreign: Mapping[str, str] | None = None,
    most_bytes: int,
) -> Changes:
    """Compare.

    Args:
        placed: What was put there, by its path within the folder.
        seen: What is there.
        ignore: Patterns of what is only counted, unless it was put there.
        paths: Patterns of what is asked for; none: all.
        foreign: Folders in which this agent makes nothing, and why not.
        most_bytes: The largest file that a commit takes.
    """
    found: list[Change] = []
    there: set[str] = set()
    closed: list[str] = []  # what could not be looked into: nothing in it is called removed
    ignored = 0
    for one in seen:
        if one.path:
            there.add(one.path)
        before = placed.get(one.path)
        if one.why:
            closed.append(one.path)
        elif before is not None and before.sha256 == one.sha256:
            continue
        if before is None and matches_any(ignore, f"/{one.path}"):
            ignored += 1
        elif not paths or matches_any(paths, f"/{one.path}"):
            found.append(_of_seen(one, before, foreign or {}, most_bytes))
    for path, before in placed.items():
        if path in there or (paths and not matches_any(paths, f"/{path}")):
            continue
        if not any(not each or path.startswith(f"{each}/") for each in closed):
            found.append(_of_removed(before))
    return Changes(tuple(sorted(found, key=lambda one: one.path)), ignored)


def _of_seen(
    one: FoundFile, before: KeptFile | None, foreign: Mapping[str, str], most_bytes: int
) -> Change:
    why = one.why or (before.foreign if before is not None else _in_foreign(one.path, foreign))
    if not why and one.size_bytes > most_bytes:
        why = (
            f"it has {one.size_bytes} bytes, and a commit takes files of {most_bytes}: "
            "write it from inside, by kernel.storage.append"
        )
    shown = ChangedFile(
        shown_path(one.path),
        "refused" if why else ("added" if before is None else "changed"),
        why=why,
        version=before.version if before is not None else 0,
        size_bytes=one.size_bytes,
        sha256=one.sha256,
    )
    return Change(one.path, shown, before, one.content)


def _of_removed(before: KeptFile) -> Change:
    shown = ChangedFile(
        shown_path(before.path),
        "refused" if before.foreign else "removed",
        why=before.foreign,
        version=before.version,
    )
    return Change(before.path, shown, before)


def _in_foreign(path: str, foreign: Mapping[str, str]) -> str:
    return next(
        (why for folder, why in foreign.items() if not folder or path.startswith(f"{folder}/")), ""
    )
