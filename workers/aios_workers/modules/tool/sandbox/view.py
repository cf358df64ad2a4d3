"""What a sandboxed process sees, as bubblewrap's arguments. Source: bwrap(1), 0.11."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from aios_workers.modules.tool.running import Launch
from aios_workers.modules.tool.sandbox_files import SCRATCH

USER = "65534"  # nobody
# Of the system: programs and libraries, and what they look up there. No accounts, no settings.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
# Of /proc: what belongs to the machine, not to processes. Where the worker is root these could be
# written to otherwise, whatever rights the sandbox has: the kernel asks for the user alone.
_PROC_FOLDERS = ("acpi", "asound", "bus", "fs", "irq", "pressure", "scsi", "sys")
_PROC_FILES = (
    *("interrupts", "kallsyms", "kcore", "keys", "kmsg", "latency_stats", "mtrr", "sched_debug"),
    *("slabinfo", "sysrq-trigger", "timer_list", "timer_stats", "vmallocinfo"),
)
_SETTINGS = (
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/pki",
    "/etc/ssl/certs",
)


def arguments(launch: Launch, hidden: Sequence[Path], scratch_bytes: int) -> list[str]:
    """Return how bwrap makes what a process sees, and starts it.

    Its workspace alone can be written to, and /tmp and /dev/shm. All three lie in memory, each in a
    file system of its own: nothing that is written there is on a disk, or outlives the sandbox.

    Args:
        launch: What is started, and what it has to read.
        hidden: What it never sees, also where it lies below what it reads.
        scratch_bytes: The most that /tmp and /dev/shm take, each, and the workspace where the
            launch says nothing of it.
    """
    found = [
        *("--unshare-user", "--unshare-all", "--disable-userns", "--cap-drop", "ALL"),
        *("--die-with-parent", "--new-session", "--uid", USER, "--gid", USER),
        *("--hostname", "sandbox", "--proc", "/proc", "--dev", "/dev"),
    ]
    found += _proc()
    for scratch in SCRATCH:
        found += _in_memory(scratch, scratch_bytes, "1777")
    for system in _SYSTEM:
        found += _system(Path(system))
    for setting in _SETTINGS:
        found += ["--ro-bind-try", setting, setting]
    read = [*_existing(_read(launch))]
    bound = _outermost(read)
    for path in bound:
        found += ["--ro-bind", str(path), str(path)]
    for path in (*hidden, *_dotted(bound)):
        if any(path.is_relative_to(each) for each in bound):
            found += _covered(path, read)
    workspace = str(launch.workspace)
    found += _in_memory(workspace, launch.written_bytes or scratch_bytes, "0700")
    found += ["--chdir", workspace]
    found += ["--remount-ro", "/dev", "--remount-ro", "/", "--clearenv"]
    for name, value in launch.environ.items():
        found += ["--setenv", name, value]
    return [*found, "--", *launch.command]


def _in_memory(path: str, most_bytes: int, rights: str) -> list[str]:
    return ["--size", str(most_bytes), "--perms", rights, "--tmpfs", path]


def _proc() -> list[str]:
    folders = [path for name in _PROC_FOLDERS if (path := Path("/proc", name)).is_dir()]
    files = [path for name in _PROC_FILES if (path := Path("/proc", name)).exists()]
    found: list[str] = []
    for folder in folders:
        found += ["--perms", "0555", "--tmpfs", str(folder), "--remount-ro", str(folder)]
    for file in files:
        found += ["--ro-bind", "/dev/null", str(file)]
    return found


def _system(path: Path) -> list[str]:
    if path.is_symlink():
        return ["--symlink", str(path.readlink()), str(path)]
    return ["--ro-bind", str(path), str(path)] if path.is_dir() else []


def _dotted(bound: Iterable[Path]) -> Iterable[Path]:
    """Yield what begins with a dot where modules are read: a person's settings, keys, histories."""
    for folder in bound:
        if folder.is_dir():
            dotted = (each for each in folder.iterdir() if each.name.startswith("."))
            yield from (each for each in dotted if not each.is_symlink())  # a link shows nothing


def _covered(path: Path, read: Iterable[Path]) -> list[str]:
    """Return what hides a path, but for what has to be read below it."""
    if not path.is_dir():
        return ["--ro-bind", "/dev/null", str(path)] if path.exists() else []
    found = ["--perms", "0555", "--tmpfs", str(path)]
    for each in _outermost([each for each in read if each.is_relative_to(path) and each != path]):
        found += ["--ro-bind", str(each), str(each)]
    return [*found, "--remount-ro", str(path)]


def _read(launch: Launch) -> Iterable[Path]:
    """Yield what it reads; an interpreter of an environment is that of another folder."""
    for path in launch.readable:
        yield path.absolute()
        yield path.resolve()
    program = Path(launch.command[0])
    if program.is_absolute():
        yield program.resolve().parent.parent


def _existing(paths: Iterable[Path]) -> Iterable[Path]:
    return (path for path in dict.fromkeys(paths) if path.exists() and path != Path("/"))


def _outermost(paths: Sequence[Path]) -> list[Path]:
    """Return those that lie below no other one, shortest first."""
    kept: list[Path] = []
    for path in sorted(paths, key=lambda each: len(each.parts)):
        if not any(path.is_relative_to(each) for each in kept):
            kept.append(path)
    return kept
