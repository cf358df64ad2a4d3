"""Runs Python code once, and tells the value of its last expression."""

import ast
import asyncio
import contextlib
import inspect
import linecache
import os
import sys
import threading
import traceback
import types
from collections.abc import Sequence
from typing import Any

from aios_workers.modules.tool.kernel_tools.children import MOST_VALUE_BYTES, run_child

NAME = "<code>"


def run_python(code: str, files: Sequence[str] = (), timeout_s: float = 30.0) -> dict[str, Any]:
    """Return what the code printed, its exit code, and how its last expression shows itself."""
    ended = run_child(lambda value: _be_python(code, value), timeout_s)
    told = ended.told()
    if value := ended.streams[2].text():
        told["value"] = value
    return told


def _be_python(code: str, value: int) -> None:
    linecache.cache[NAME] = (len(code), None, code.splitlines(keepends=True), NAME)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.path.insert(0, os.getcwd())
    sys.argv = [NAME]
    status = 0
    try:
        found = _run(code, main.__dict__)
        if found is not None:
            os.write(value, repr(found).encode(errors="replace")[:MOST_VALUE_BYTES])
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    except SystemExit as left:
        status = _status(left.code)
    except BaseException as error:  # noqa: BLE001  whatever code raises is told
        status = 1
        where = error.__traceback__
        while where is not None and where.tb_frame.f_code.co_filename != NAME:
            where = where.tb_next
        traceback.print_exception(type(error), error, where)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def _run(code: str, names: dict[str, Any]) -> object:
    tree = ast.parse(code, NAME)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    _evaluated(tree, "exec", names)
    if isinstance(last, ast.Expr):
        return _evaluated(ast.Expression(last.value), "eval", names)
    return None


def _evaluated(tree: ast.Module | ast.Expression, mode: str, names: dict[str, Any]) -> object:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    made = compile(tree, NAME, mode, flags=flags, dont_inherit=True)
    value = eval(made, names)  # noqa: S307  it is what this tool is for
    if made.co_flags & inspect.CO_COROUTINE:
        return asyncio.run(_awaited(value))
    return value


async def _awaited(value: Any) -> object:  # noqa: ANN401
    return await value


def _status(code: object) -> int:
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1
