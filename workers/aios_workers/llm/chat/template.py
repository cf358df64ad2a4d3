"""A model's chat template: conversations and tools become the text of a prompt.

The template runs in a process of its own (`renderer.py`), which is started when it is needed and
ended when it takes too long. A rendering costs about 0.2 ms more for it.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aios_broker.contract.errors import CoreError, InvalidConfig

RENDER_LIMIT_S = 5.0  # of a template that is no program gone wrong: 0.1 s for 4 MiB
START_LIMIT_S = 20.0  # of the process, on a machine that has no time for it
MAX_SOURCE_CHARACTERS = 1024 * 1024
_READ_BYTES = 1 << 20


class TemplateRefusal(Exception):
    """What a template says of messages that it does not render."""


class ChatTemplate:
    """One template, and the process that renders it. One caller at a time."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        field: str,
        subject: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Compile a template.

        Args:
            source: Jinja, with the names that templates of the Hugging Face family expect.
            special_tokens: `bos_token`, `eos_token` and their kin.
            field: The setting that names where the template is from.
            subject: Whose template it is, for messages.
            clock: The time that templates may write down, which they do in UTC.

        Raises:
            InvalidConfig: It is no template, or takes too long to be read.
        """
        self.source = source
        self._field = field
        self._subject = subject
        self._clock = clock
        self._load = {"load": source, "special": dict(special_tokens)}
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise _unreadable(f"it has {len(source)} characters", field, subject)
        with self._turn:
            answer = self._started()
        if answer is None:
            raise _unreadable("reading it takes too long", field, subject)
        if "error" in answer:
            raise _unreadable(answer["error"], field, subject)
        self.names = frozenset(answer["names"])

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        answers: bool = True,
    ) -> str:
        """Return the text of a conversation; `answers`: up to the start of the answer.

        Raises:
            TemplateRefusal: The template refuses these messages; its words.
            InvalidConfig: It does not come to an end.
            CoreError: Its process cannot be started.
        """
        request = {
            "messages": messages,
            "tools": tools,
            "now_s": self._clock(),
            "answers": answers,
        }
        with self._turn:
            if self._process is None and self._started() is None:
                raise CoreError("the process that renders chat templates does not start")
            answer = self._asked(request, RENDER_LIMIT_S)
        if answer is None:
            why = f"it did not come to an end within {RENDER_LIMIT_S:g} s and 1 GiB"
            raise _unreadable(why, self._field, self._subject)
        if "error" in answer:
            raise TemplateRefusal(answer["error"])
        return str(answer["text"])

    def close(self) -> None:
        """End the process; another rendering would start it again."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _started(self) -> dict[str, Any] | None:
        """Start the process and load the template; return its answer."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "aios_workers.llm.chat.renderer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self._asked(self._load, START_LIMIT_S)

    def _asked(self, request: Mapping[str, object], limit_s: float) -> dict[str, Any] | None:
        """Return the answer; None: there was none in time, and the process was ended."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        answer = None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            answer = _line(process.stdout.fileno(), time.monotonic() + limit_s)
        if answer is None:
            self.close()
            return None
        read: dict[str, Any] = json.loads(answer)
        return read

    def __del__(self) -> None:
        """Leave no process behind."""
        self.close()


def _line(descriptor: int, until_s: float) -> bytes | None:
    """Return what is read up to the next line's end; None: it did not come in time."""
    pieces: list[bytes] = []
    while not pieces or not pieces[-1].endswith(b"\n"):
        left_s = until_s - time.monotonic()
        if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
            return None
        piece = os.read(descriptor, _READ_BYTES)
        if not piece:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _unreadable(why: str, field: str, subject: str) -> InvalidConfig:
    return InvalidConfig(
        f"the chat template of {subject} is of no use: {why}",
        field=field,
        remedy="use a model whose template works",
    )
