"""A tool's process that is kept for the next call, and what the calls that run in it may write."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from aios_broker.contract.errors import ModuleError, ToolFailed
from aios_workers.modules.tool.egress.way_out import WayOut
from aios_workers.modules.tool.made_files import MOST_MADE, is_too_large
from aios_workers.modules.tool.sandbox_files import FileUsage, SandboxFiles, SandboxLost
from aios_workers.modules.tool.tool_process import ToolProcess
from aios_workers.modules.tool.workspace.folder import below, opened_root, put

STORAGE = "storage"  # in a call's folder: the files of the agent's storage
PAGE_BYTES = 4096  # that a file takes beyond its bytes, at most
_NOTHING = FileUsage(0, 0)


@dataclass(slots=True)
class KeptProcess:
    """A process, its calls that run, and their folders."""

    process: ToolProcess
    folder: Path  # where its calls work, as they see it
    way_out: WayOut | None
    calls: dict[str, FileUsage] = field(default_factory=dict)  # that run; what was laid for each

    @property
    def files(self) -> SandboxFiles:
        """What its calls write."""
        assert self.process.files is not None
        return self.process.files

    def begin(self, call_id: str) -> Path:
        """Make a call's folder; return it as the call sees it."""
        self.calls[call_id] = _NOTHING
        with self.files.open() as folder:
            os.mkdir(folder / call_id, 0o700)
        return self.folder / call_id

    def lay(self, call_id: str, laid: Path) -> None:
        """Put files of the agent's storage where a call finds them; blocks.

        Raises:
            ToolFailed: Another of the agent's calls keeps that from being done.
        """
        name, size, count = f"{call_id}.{STORAGE}", 0, 0
        with self.files.open() as folder:
            try:
                os.mkdir(folder / name, 0o700)
                for parent, _, names in os.walk(laid):
                    count += 1 + len(names)
                    for path in (Path(parent, each) for each in names):
                        content = path.read_bytes()
                        size += len(content) + PAGE_BYTES
                        put(folder, f"{name}/{path.relative_to(laid)}", content)
                with opened_root(folder) as root, below(root, [call_id]) as workspace:
                    os.symlink(self.folder / name, STORAGE, dir_fd=workspace)
            except (OSError, ModuleError) as error:
                raise ToolFailed(
                    "the files of the storage cannot be put into its folder, which other calls of "
                    "the agent write to",
                    remedy="try it again when these have ended",
                ) from error
        self.calls[call_id] = FileUsage(size, count)

    async def end(self, call_id: str) -> None:
        """Take away what a call has left, wherever it is."""
        del self.calls[call_id]
        await self.files.sweep({*self.calls, *(f"{each}.{STORAGE}" for each in self.calls)})

    def is_beyond(self, call_id: str) -> bool:
        """Whether a call has written more than it may: where it runs alone, wherever; blocks."""
        most_bytes = self.process.program.card.limits.file_bytes
        try:
            with self.files.open() as folder:
                if is_too_large(folder / call_id, most_bytes):
                    return True
            return len(self.calls) == 1 and self.is_full()
        except SandboxLost:
            return False  # there is nothing any more

    def is_full(self) -> bool:
        """Whether all that there is is more than the calls that run now may write; blocks."""
        most_bytes, laid = self.process.program.card.limits.file_bytes, list(self.calls.values())
        most = FileUsage(
            len(laid) * most_bytes + sum(each.size_bytes for each in laid),
            len(laid) * MOST_MADE + sum(each.count for each in laid),
        )
        used = self.files.usage(most)
        return used.size_bytes > most.size_bytes or used.count > most.count
