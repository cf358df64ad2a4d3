"""Tie a program to the life of the thread that started it, then become that program.

Run as a script (`python -I -S shim.py PARENT_PID DEATH_SIGNAL IDENTITY PROGRAM [ARGUMENT...]`) and
not as a function between fork and exec: in a process with threads only a fresh interpreter may
safely run Python there. It imports nothing of the project, and costs about 30 ms.

IDENTITY says as whom the program runs:
    same        as this process does
    namespace   as root of the machine, but seen as user 65534 inside a user namespace of its own:
                for Postgres, which refuses to run when its effective user id is 0
    nobody      as user 65534, with no rights of root left
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

NOBODY_ID = 65534
CLONE_NEWUSER = 0x10000000  # linux/sched.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def become(parent_pid: int, death_signal: int, identity: str, command: list[str]) -> None:
    """Replace this process by `command`; returns never, or raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if identity == "namespace":
        _enter_namespace(libc)
    elif identity == "nobody":
        os.setgroups([])
        os.setgid(NOBODY_ID)
        os.setuid(NOBODY_ID)
    # After the change of identity: the kernel clears the death signal when credentials change.
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        sys.exit(f"{command[0]}: the process that wanted it is gone")
    # What this interpreter, or a shell's `&` before it, ignores would stay ignored.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execv(command[0], command)


def _enter_namespace(libc: ctypes.CDLL) -> None:
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "this machine refuses user namespaces")
    Path("/proc/self/setgroups").write_text("deny")  # a condition for writing gid_map
    Path("/proc/self/uid_map").write_text(f"{NOBODY_ID} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{NOBODY_ID} {gid} 1")


if __name__ == "__main__":
    try:
        become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    except OSError as error:
        sys.exit(f"{sys.argv[4]}: {error}")
