"""The module `kernel` that code in a session imports: a function for each syscall it may make."""

from collections.abc import Iterable
from typing import get_args

import msgspec
from msgspec import Struct

from aios_broker.contract.memory import MemoryBody
from aios_broker.contract.storage import StorageBody
from aios_broker.contract.tools import ToolList, ToolRun, ToolShow

_HEAD = '''\
class KernelError(Exception):
    """What a syscall ended with."""

    def __init__(self, code, message, field=None, remedy=None):
        super().__init__(f"{code}: {message}" + (f" ({remedy})" if remedy else ""))
        self.code, self.message, self.field, self.remedy = code, message, field, remedy


class _Unset:
    def __repr__(self):
        return "..."


_UNSET = _Unset()


def _call(kind, values):
    body = {name: value for name, value in values.items() if value is not _UNSET}
    answer = _ask({**body, "type": kind})
    if "error" in answer:
        raise KernelError(**answer["error"])
    return answer.get("value")
'''
_TOOLS = '''

class tools:
    """Tools. A tool ORG/NAME is also the function `tools.ORG.NAME(...)`."""

    @staticmethod
    def call(tool, arguments=None, /, **more):
        """Run a tool; return its value."""
        answer = _call("tool.call", {"tool": tool, "arguments": {**(arguments or {}), **more}})
        return answer.get("value")


class _Tools:
    def __init__(self, name):
        self._name = name

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return _Tools(f"{self._name}/{name}" if self._name else name)

    def __call__(self, **arguments):
        return _stubs.call(self._name, arguments)


_stubs, tools = tools, _Tools("")
tools.call = _stubs.call
'''
_ALLOWED: tuple[type[Struct], ...] = (
    *(ToolRun, ToolList, ToolShow),
    *get_args(MemoryBody),
    *get_args(StorageBody),
)
BODIES: dict[str, type[Struct]] = {str(one.__struct_config__.tag): one for one in _ALLOWED}


def kernel_source() -> str:
    """Return the module's text."""
    families: dict[str, list[str]] = {}
    for kind, body in BODIES.items():
        family, _, verb = kind.partition(".")
        families.setdefault(family, []).append(_function(kind, verb, body))
    rooms = (_room(family, families[family]) for family in ("memory", "storage"))
    listing = [
        f"tools.{verb} = lambda *a, **k: _tool_{verb}(*a, **k)\n" for verb in ("list", "show")
    ]
    asked = [
        _function(f"tool.{verb}", f"_tool_{verb}", BODIES[f"tool.{verb}"])
        for verb in ("list", "show")
    ]
    return "".join((_HEAD, *rooms, *(f"\n\n{one}" for one in asked), _TOOLS, *listing))


def _room(name: str, functions: Iterable[str]) -> str:
    inner = "\n".join(
        "    @staticmethod\n" + "".join(f"    {line}\n" for line in one.splitlines())
        for one in functions
    )
    return f'\n\nclass {name}:\n    """The agent\'s {name}."""\n\n{inner}'


def _function(kind: str, verb: str, body: type[Struct]) -> str:
    required, optional = [], []
    for one in msgspec.structs.fields(body):
        if one.required:
            required.append(one.name)
        else:
            optional.append(f"{one.name}=_UNSET")
    names = [one.name for one in msgspec.structs.fields(body)]
    values = ", ".join(f'"{name}": {name}' for name in names)
    line = (body.__doc__ or kind).strip().partition("\n")[0].replace('"', "'")
    return (
        f"def {verb}({', '.join([*required, *optional])}):\n"
        f'    """{line}"""\n'
        f'    return _call("{kind}", {{{values}}})\n'
    )
