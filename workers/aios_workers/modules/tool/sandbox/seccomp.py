"""The filter of system calls that sandboxed processes run under, as the kernel takes it.

Everything is allowed but what reaches beyond the sandbox's namespaces or into the kernel's rarely
walked parts (ptrace, mounts, namespaces, bpf, io_uring, keys, modules, time), sockets of families
that no namespace keeps apart (vsock, packet, alg), and files in memory that no file system of the
sandbox counts (memfd, System V's shared memory). The numbers are Linux' own
(`asm/unistd.h`, `linux/audit.h`, `linux/seccomp.h`).
"""

import errno
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_X32 = 0x40000000  # from here on: x86-64's calls by another table
_NEW_NAMESPACES = 0x7E020080  # CLONE_NEWTIME, NS, CGROUP, UTS, IPC, USER, PID, NET
_FAMILIES = (1, 2, 10, 16)  # unix, inet, inet6, netlink
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: type into the terminal

# The same on all architectures.
_NEWER = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "memfd_secret": 447,
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a filter has to know of one."""

    audit: int  # how the kernel names it
    denied: Mapping[str, int]
    clone: int
    ioctl: int
    socket: int
    socketpair: int
    has_x32: bool = False


X86_64 = Architecture(
    audit=0xC000003E,
    denied=_NEWER
    | {
        "shmget": 29,
        "ptrace": 101,
        "syslog": 103,
        "uselib": 134,
        "personality": 135,
        "vhangup": 153,
        "modify_ldt": 154,
        "pivot_root": 155,
        "_sysctl": 156,
        "adjtimex": 159,
        "chroot": 161,
        "acct": 163,
        "settimeofday": 164,
        "mount": 165,
        "umount2": 166,
        "swapon": 167,
        "swapoff": 168,
        "reboot": 169,
        "sethostname": 170,
        "setdomainname": 171,
        "iopl": 172,
        "ioperm": 173,
        "init_module": 175,
        "delete_module": 176,
        "quotactl": 179,
        "clock_settime": 227,
        "mbind": 237,
        "set_mempolicy": 238,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "migrate_pages": 256,
        "unshare": 272,
        "move_pages": 279,
        "perf_event_open": 298,
        "fanotify_init": 300,
        "name_to_handle_at": 303,
        "open_by_handle_at": 304,
        "clock_adjtime": 305,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "kcmp": 312,
        "finit_module": 313,
        "memfd_create": 319,
        "kexec_file_load": 320,
        "bpf": 321,
        "userfaultfd": 323,
    },
    clone=56,
    ioctl=16,
    socket=41,
    socketpair=53,
    has_x32=True,
)
AARCH64 = Architecture(
    audit=0xC00000B7,
    denied=_NEWER
    | {
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "chroot": 51,
        "vhangup": 58,
        "quotactl": 60,
        "acct": 89,
        "personality": 92,
        "unshare": 97,
        "kexec_load": 104,
        "init_module": 105,
        "delete_module": 106,
        "clock_settime": 112,
        "syslog": 116,
        "ptrace": 117,
        "reboot": 142,
        "sethostname": 161,
        "setdomainname": 162,
        "settimeofday": 170,
        "adjtimex": 171,
        "shmget": 194,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "swapon": 224,
        "swapoff": 225,
        "mbind": 235,
        "set_mempolicy": 237,
        "migrate_pages": 238,
        "move_pages": 239,
        "perf_event_open": 241,
        "fanotify_init": 262,
        "name_to_handle_at": 264,
        "open_by_handle_at": 265,
        "clock_adjtime": 266,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "kcmp": 272,
        "finit_module": 273,
        "memfd_create": 279,
        "bpf": 280,
        "userfaultfd": 282,
        "kexec_file_load": 294,
    },
    clone=220,
    ioctl=29,
    socket=198,
    socketpair=199,
)
CLONE3 = 435  # its flags lie in memory, where no filter looks
ARCHITECTURES: Mapping[str, Architecture] = {"x86_64": X86_64, "aarch64": AARCH64}


def filter_here() -> bytes | None:
    """Return the filter for this machine; None: there is none for its architecture."""
    found = ARCHITECTURES.get(platform.machine())
    return None if found is None else filter_of(found)


def filter_of(one: Architecture) -> bytes:
    """Return the filter for an architecture, as bwrap and the kernel take it.

    Source: the kernel's Documentation/userspace-api/seccomp_filter.rst. Instructions are 8 bytes;
    each question jumps over the answer that follows it.
    """
    refused = _ERRNO | errno.EPERM
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, one.audit),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if one.has_x32:
        lines += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL_PROCESS)]
    for number in sorted(one.denied.values()):
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, refused)]
    lines += [(_EQUAL, 0, 1, CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]  # then clone is used
    lines += _asked(one.clone, 0, [(_ANY_BIT, 0, 1, _NEW_NAMESPACES), (_RETURN, 0, 0, refused)])
    typed = [
        line
        for request in _TERMINAL_INPUT
        for line in ((_EQUAL, 0, 1, request), (_RETURN, 0, 0, refused))
    ]
    lines += _asked(one.ioctl, 1, typed)
    families = [
        line for family in _FAMILIES for line in ((_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW))
    ]
    unknown = (_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT)
    for number in (one.socket, one.socketpair):
        lines += _asked(number, 0, [*families, unknown])
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _asked(
    number: int, argument: int, lines: list[tuple[int, int, int, int]]
) -> list[tuple[int, int, int, int]]:
    """Return what looks at one argument of one call, and else goes on behind it.

    The lower half of an argument: the kernel reads no more of these.
    """
    inner = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument), *lines, (_LOAD, 0, 0, _NUMBER_AT)]
    return [(_EQUAL, 0, len(inner), number), *inner]
