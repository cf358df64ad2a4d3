"""Runs of Python: in one namespace, with the value of the last expression."""

import ast
import asyncio
import base64
import builtins
import contextlib
import inspect
import io
import json
import linecache
import resource
import signal
import sys
import threading
import traceback
import types
from collections.abc import Mapping
from typing import Any

MOST_VALUE = 64 * 1024  # characters of how a value shows itself
MOST_TRACEBACK = 20_000
MOST_RICH_BYTES = 4 * 1024 * 1024  # of a run
MOST_RICH = 64
_METHODS = (
    ("_repr_html_", "text/html"),
    ("_repr_markdown_", "text/markdown"),
    ("_repr_latex_", "text/latex"),
    ("_repr_svg_", "image/svg+xml"),
    ("_repr_png_", "image/png"),
    ("_repr_jpeg_", "image/jpeg"),
    ("_repr_json_", "application/json"),
)


class CpuLimit(BaseException):
    """A run has used more processor time than the session may."""


class PythonRuns:
    """The Python of a session."""

    def __init__(self, cpu_s: float, kernel: types.ModuleType) -> None:
        self._cpu_s = cpu_s
        self._main = threading.main_thread().ident
        self._running: int | None = None
        self._rich: list[dict[str, Any]] = []
        self._rich_bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        main = types.ModuleType("__main__")
        main.__dict__.update(display=self.display, __builtins__=builtins)
        sys.modules["__main__"] = main
        sys.modules["kernel"] = kernel
        self._names = main.__dict__

    def interrupt(self, number: int) -> None:
        """End a run, if it is the one that runs; called by another thread."""
        if self._running == number and self._main is not None:
            signal.pthread_kill(self._main, signal.SIGINT)

    def leave(self) -> None:
        """Nothing runs beside this process."""

    def run(self, number: int, code: str) -> dict[str, Any]:
        """Run code; return what is told of its end."""
        self._rich, self._rich_bytes = [], 0
        told: dict[str, Any] = {"end": number}
        signal.signal(signal.SIGINT, self._on_interrupt)
        signal.signal(signal.SIGXCPU, self._on_cpu)
        self._set_cpu(self._cpu_s)
        try:
            try:
                self._running = number
                value = self._value(number, code)
                if value is not None:
                    self._names["_"] = value
                    told["value"] = repr(value)[:MOST_VALUE]
                    self._add(_bundle(value))
                self._figures()
            finally:
                self._running = None
        except CpuLimit:
            told["error"] = {
                "name": "CpuLimit",
                "message": f"it used more than {self._cpu_s:g} s of processor time",
            }
        except BaseException as error:  # noqa: BLE001  whatever code raises is told
            told["error"] = _failure(error)
        self._set_cpu(None)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        return told | {"rich": self._rich}

    def display(self, *values: object) -> None:
        """Show values as they show themselves best; they come with the run's result."""
        for value in values:
            self._add(_bundle(value) | {"text/plain": repr(value)[:MOST_VALUE]})

    def _value(self, number: int, code: str) -> object:
        name = f"<run {number}>"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        if tree.body:
            self._evaluated(tree, name, "exec")
        if isinstance(last, ast.Expr):
            return self._evaluated(ast.Expression(last.value), name, "eval")
        return None

    def _evaluated(self, tree: ast.Module | ast.Expression, name: str, mode: str) -> object:
        made = compile(tree, name, mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        value = eval(made, self._names)  # noqa: S307  it is what a session is for
        if made.co_flags & inspect.CO_COROUTINE:
            if self._loop is None or self._loop.is_closed():
                self._loop = asyncio.new_event_loop()
            return self._loop.run_until_complete(value)
        return value

    def _on_interrupt(self, *_: object) -> None:
        if self._running is not None:
            raise KeyboardInterrupt

    def _on_cpu(self, *_: object) -> None:
        if self._running is not None:
            raise CpuLimit

    def _set_cpu(self, more_s: float | None) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = most if more_s is None else int(used.ru_utime + used.ru_stime + more_s) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (soft, most))

    def _add(self, bundle: Mapping[str, Any]) -> None:
        size = len(json.dumps(bundle)) if bundle else 0
        room = len(self._rich) < MOST_RICH and self._rich_bytes + size <= MOST_RICH_BYTES
        if bundle and room:
            self._rich.append(dict(bundle))
            self._rich_bytes += size

    def _figures(self) -> None:
        """Take the figures that pyplot has open, and close them."""
        plots = sys.modules.get("matplotlib.pyplot")
        if plots is None:
            return
        for number in plots.get_fignums():
            file = io.BytesIO()
            plots.figure(number).savefig(file, format="png", bbox_inches="tight")
            self._add({"image/png": base64.b64encode(file.getvalue()).decode()})
        plots.close("all")


def _bundle(value: object) -> dict[str, Any]:
    """Return how a value shows itself, by media type: the methods that notebooks ask, too."""
    found: dict[str, Any] = {}
    if isinstance(value, type):
        return found
    asked = getattr(value, "_repr_mimebundle_", None)
    if callable(asked):
        said = asked()
        said = said[0] if isinstance(said, tuple) else said
        found |= {str(key): _plain(one) for key, one in (said or {}).items()}
    for method, kind in _METHODS:
        show = getattr(value, method, None)
        if callable(show) and kind not in found and (said := show()) is not None:
            found[kind] = _plain(said)
    return found


def _plain(said: object) -> object:
    if isinstance(said, bytes):
        return base64.b64encode(said).decode()
    if isinstance(said, tuple):  # what is shown, and facts of it
        return _plain(said[0])
    return json.loads(json.dumps(said, default=str))


def _failure(error: BaseException) -> dict[str, str]:
    where = error.__traceback__
    while where is not None and not where.tb_frame.f_code.co_filename.startswith("<run "):
        where = where.tb_next
    try:
        message = str(error)
        lines = traceback.format_exception(type(error), error, where)
    except BaseException:  # noqa: BLE001  an error of the code's own that cannot be shown
        message, lines = "it cannot be shown", []
    return {
        "name": type(error).__name__,
        "message": message[:MOST_TRACEBACK],
        "traceback": "".join(lines)[-MOST_TRACEBACK:],
    }
