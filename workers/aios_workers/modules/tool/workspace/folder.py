"""A session's folder as the worker touches it, while what runs in the session may change it.

Each part of a path is opened below the folder before it and never through a link, so that nothing
that somebody puts there meanwhile leads outside. All functions block: they are called in a thread.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from aios_broker.contract.errors import ModuleError

AT_ONCE = 20_000  # names that are taken away before there is another look
MOST_STEPS = 1_000_000  # of taking one thing away
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OURS = stat.S_IRWXU
MOVING = "somebody changes the folder meanwhile"


def put(root: Path, path: str, content: bytes) -> None:
    """Put a file in place, whole; what stands in its way is taken away.

    Raises:
        ModuleError: Somebody keeps that from being done.
    """
    *above, name = path.split("/")
    with opened_root(root) as top, _no_os_errors(path):
        for count in range(len(above)):
            with below(top, above[:count], restoring=True) as folder:
                _make_folder(folder, above[count])
        with below(top, above, restoring=True) as folder:
            temporary = f".aios-{secrets.token_hex(8)}"
            opened = os.open(temporary, _NEW, 0o644, dir_fd=folder)
            try:
                with open(opened, "wb") as file:
                    file.write(content)
                with contextlib.suppress(FileNotFoundError):
                    if stat.S_ISDIR(_mode(folder, name)):
                        take_away(folder, name)
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise


def take(root: Path, path: str) -> None:
    """Take away what is at a path, with all below it; folders above that are empty go too.

    Raises:
        ModuleError: Somebody keeps that from being done.
    """
    *above, name = path.split("/")
    with opened_root(root) as top, _no_os_errors(path):
        try:
            with below(top, above, restoring=True) as folder:
                take_away(folder, name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for count in range(len(above) - 1, -1, -1):
            with below(top, above[:count]) as folder:
                try:
                    os.rmdir(above[count], dir_fd=folder)
                except OSError:
                    return


def clear(root: Path) -> None:
    """Take away all that is in a folder."""
    with opened_root(root) as top, _no_os_errors("."):
        _empty(top)


def remove(root: Path) -> None:
    """Take a folder away, as far as that can be done: nothing runs in it any more."""
    with contextlib.suppress(OSError, ModuleError):
        clear(root)
        root.rmdir()


def take_away(folder: int, name: str) -> None:
    """Take away what is in an open folder by a name, with all below it; a link is not followed.

    Raises:
        OSError: Somebody keeps that from being done.
    """
    try:
        if not stat.S_ISDIR(_mode(folder, name)):
            os.unlink(name, dir_fd=folder)
            return
    except FileNotFoundError:
        return
    with _child(folder, name, restoring=True) as inner:
        _empty(inner)
    os.rmdir(name, dir_fd=folder)


def _empty(top: int) -> None:
    """Take away all that is in a folder, however deep: what lies deeper is moved up to it first."""
    steps = 0
    while names := names_in(top, AT_ONCE):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(_mode(top, name)):
                    os.unlink(name, dir_fd=top)
                else:
                    with _child(top, name, restoring=True) as inner:
                        inside = names_in(inner, AT_ONCE)
                        for each in inside:
                            _raise_up(inner, each, top)
                    steps += len(inside)
                    _remove_folder(top, name)
            steps += 1
            if steps > MOST_STEPS:
                raise OSError(errno.EBUSY, MOVING)


def _raise_up(folder: int, name: str, top: int) -> None:
    """Take a file away; have a folder lie in `top` instead."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(_mode(folder, name)):
            os.unlink(name, dir_fd=folder)
            return
        with _child(folder, name, restoring=True):
            pass  # one that may not be written to cannot be moved
        os.rename(name, f".aios-{secrets.token_hex(8)}", src_dir_fd=folder, dst_dir_fd=top)


def _remove_folder(top: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=top)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:  # there was more than was looked at: once more
            raise


def _make_folder(folder: int, name: str) -> None:
    try:
        if stat.S_ISDIR(_mode(folder, name)):
            return
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    os.mkdir(name, 0o755, dir_fd=folder)


def _mode(folder: int, name: str) -> int:
    return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode


def names_in(folder: int, most: int) -> list[str]:
    """Return names of what is in a folder, at most so many."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in islice(entries, most))


@contextmanager
def opened_root(root: Path) -> Iterator[int]:
    """Yield a descriptor of a session's folder."""
    opened = os.open(root, _FOLDER)
    try:
        yield opened
    finally:
        os.close(opened)


@contextmanager
def below(top: int, parts: Sequence[str], *, restoring: bool = False) -> Iterator[int]:
    """Yield a folder below another one, opened part by part."""
    at = os.dup(top)
    try:
        for part in parts:
            with _child(at, part, restoring=restoring) as inner:
                following = os.dup(inner)
            os.close(at)
            at = following
        yield at
    finally:
        os.close(at)


@contextmanager
def _child(folder: int, name: str, *, restoring: bool = False) -> Iterator[int]:
    """Yield a folder in another one; `restoring`: whatever rights it was left with."""
    if restoring:
        handle = os.open(name, _HANDLE, dir_fd=folder)
        try:
            if stat.S_IMODE(os.fstat(handle).st_mode) & _OURS != _OURS:
                os.chmod(f"/proc/self/fd/{handle}", _OURS)  # what is open, whatever has its name
        finally:
            os.close(handle)
    opened = os.open(name, _FOLDER, dir_fd=folder)
    try:
        yield opened
    finally:
        os.close(opened)


@contextmanager
def _no_os_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModuleError(
            f"{path!a} cannot be put back: {error.strerror}",
            field="body.session",
            remedy="end what runs in the session (exec.interrupt), and try again; or exec.reset",
        ) from error
