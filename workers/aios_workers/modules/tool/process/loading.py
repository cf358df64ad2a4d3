"""A tool's function, loaded where nothing of the kernel is; and what it says of itself.

Run by any Python: it imports the standard library alone, and pydantic where there is one, for the
schema of a function's type hints.
"""

import hashlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

Function = Callable[..., Any]

MARK = "__aios_tool__"  # as in the contract
SAID = "aios_says"  # the attribute in which an error says who is to mend it
MOST_SAID = 2_000  # characters
MOST_FILES = 4_000
MOST_FILE_BYTES = 64 * 1024 * 1024  # of all of them together
MOST_TRACEBACK = 8_000  # characters
_SKIPPED = ("__pycache__", "node_modules")


class UnfitTool(Exception):
    """The tool cannot be loaded as it is."""


def load(function: str, import_paths: Sequence[str]) -> Function:
    """Import a function, named `module:function`, from these folders before all others."""
    for path in reversed(import_paths):
        if path not in sys.path:
            sys.path.insert(0, path)
    module_name, _, name = function.partition(":")
    found = getattr(importlib.import_module(module_name), name, None)
    if found is None:
        raise UnfitTool(f"module {module_name!r} has no function {name!r}")
    if not callable(found):
        raise UnfitTool(f"{function!r} is no function")
    made: Function = found
    return made


def described(function: Function) -> dict[str, Any]:
    """Return the settings and the docstring of a function."""
    mark = getattr(function, MARK, None)
    return {
        "settings": mark if isinstance(mark, dict) else {},
        "doc": inspect.getdoc(function) or "",
    }


def schema_of(function: Function) -> dict[str, Any]:
    """Return the JSON Schema of a function's parameters, by its type hints."""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise UnfitTool(f"parameter {parameter.name!r} cannot be given by its name")
    try:
        from pydantic import TypeAdapter  # noqa: PLC0415  another Python may have none
    except ImportError as error:
        raise UnfitTool("a schema from type hints needs pydantic; give `parameters`") from error
    of_function: Any = function  # whose parameters are the type that is meant
    return TypeAdapter(of_function).json_schema()


def converting(function: Function) -> Function:
    """Return a function that takes JSON, and is called with what its type hints say."""
    from pydantic import validate_call  # noqa: PLC0415

    return validate_call(function)


def plain(value: object) -> object:
    """Return a value as JSON types; what can be none of them raises."""
    try:
        from pydantic_core import to_jsonable_python  # noqa: PLC0415
    except ImportError:
        return value
    made: object = to_jsonable_python(value)
    return made


def content(function: Function, roots: Sequence[str], *, whole: bool) -> list[list[str]]:
    """Return [path, SHA-256] of what a tool is made of, sorted by path.

    Args:
        function: Its own module is always a part.
        roots: Its folders.
        whole: All files there; else those of the modules that are loaded.
    """
    own = getattr(sys.modules.get(getattr(function, "__module__", "")), "__file__", None)
    paths = set() if own is None else {os.path.realpath(own)}
    for root in roots:
        real = os.path.realpath(root)
        paths.update(files_below(real) if whole else _loaded_below(real))
        if len(paths) > MOST_FILES:
            raise UnfitTool(f"it has more than {MOST_FILES} files")
    return digests(paths)


def digests(paths: Iterable[str]) -> list[list[str]]:
    """Return [path, SHA-256] of files, sorted by path."""
    found, size = [], 0
    for path in sorted(paths):
        with open(path, "rb") as file:
            data = file.read(MOST_FILE_BYTES - size + 1)
        size += len(data)
        if size > MOST_FILE_BYTES:
            raise UnfitTool(f"its files have more than {MOST_FILE_BYTES} bytes")
        found.append([path, hashlib.sha256(data).hexdigest()])
    return found


def files_below(root: str) -> Iterator[str]:
    """Yield the files of a folder that a tool may be made of."""
    seen = 0
    for folder, folders, names in os.walk(root):
        folders[:] = [each for each in folders if each not in _SKIPPED and not each.startswith(".")]
        for name in names:
            path = os.path.join(folder, name)
            seen += 1
            if seen > MOST_FILES:
                raise UnfitTool(f"it has more than {MOST_FILES} files")
            if os.path.isfile(path):
                yield path


def _loaded_below(root: str) -> Iterator[str]:
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if not isinstance(path, str):
            continue
        real = os.path.realpath(path)
        is_installed = "site-packages" in real or "dist-packages" in real
        if real.startswith(root + os.sep) and not is_installed and os.path.isfile(real):
            yield real


def failure(error: BaseException) -> dict[str, str]:
    """Return an exception as it is told."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  it is the tool's own class
        message = ""
    return {
        "name": type(error).__name__,
        "message": message[:MOST_TRACEBACK],
        "traceback": "".join(lines)[-MOST_TRACEBACK:],
        **_said_of_it(error),
    }


def _said_of_it(error: BaseException) -> dict[str, str]:
    """Return what an error says of who is to mend it: which argument is wrong, or which rule."""
    said = getattr(error, SAID, None)
    if not isinstance(said, dict):
        return {}
    return {name: str(said[name])[:MOST_SAID] for name in ("argument", "rule") if name in said}
