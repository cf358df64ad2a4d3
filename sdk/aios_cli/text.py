"""Text between a terminal, a pipe or a file and the kernel: UTF-8, or a typed error."""

import io
import os
import sys

from aios_broker.contract.errors import InvalidSyscall

SHOWN_BYTES = 24
REMEDY = "give it in UTF-8; `iconv -f latin1 -t utf-8` turns text of the older kind into it"


def utf8(data: bytes, field: str) -> str:
    """Return the text that bytes are.

    Raises:
        InvalidSyscall: they are none; `field` says where they are from.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        around = data[max(0, error.start - SHOWN_BYTES // 2) :][:SHOWN_BYTES]
        raise InvalidSyscall(
            f"byte {error.start} is not of a text in UTF-8: {around!r}", field=field, remedy=REMEDY
        ) from error


def argument(text: str) -> str:
    """Return an argument of the command line, whatever the terminal's character set.

    Raises:
        InvalidSyscall: it is no text in UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that the locale has no character for
        return utf8(os.fsencode(text), "argument")
    return text


def read_stdin() -> str:
    """Return the text on standard input; raise as `utf8` does."""
    return utf8(sys.stdin.buffer.read(), "standard input")


def write_any_character() -> None:
    """Let output show as an escape what the terminal's character set lacks, and not fail of it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
