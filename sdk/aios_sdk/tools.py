"""`@tool`: a function of one's own that the kernel can run as a job.

    from aios_sdk import tool

    @tool
    def add(a: int, b: int) -> int:
        "Add two numbers."
        return a + b

`aios tools add mymodule:add` makes it known; `me.tool.call(add, {"a": 1, "b": 2})` runs it in a
process of a worker. The function itself stays what it was.
"""

from collections.abc import Callable, Sequence
from typing import TypedDict, TypeVar, Unpack, overload

import msgspec

from aios_broker.contract.errors import InvalidConfig, InvalidSyscall
from aios_broker.contract.tools import (
    MARK,
    TOOL_NAME_RULE,
    NetworkRule,
    ParallelLimits,
    RunLimits,
    ToolName,
    ToolSettings,
)

Function = TypeVar("Function", bound=Callable[..., object])
OWN = "local"  # before the name of a function that has none


class ToolOptions(TypedDict, total=False):
    """What a tool may say of itself; `ToolSettings` has what each means."""

    description: str
    parallel: ParallelLimits
    limits: RunLimits
    locks: Sequence[str]
    idempotent: bool
    destructive: bool
    runs_code: bool
    files: Sequence[str]
    network: Sequence[NetworkRule]
    secrets: Sequence[str]
    dependencies: Sequence[str]


@overload
def tool(function: Function, /) -> Function: ...
@overload
def tool(
    *, name: str | None = None, **settings: Unpack[ToolOptions]
) -> Callable[[Function], Function]: ...
def tool(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    **settings: Unpack[ToolOptions],
) -> Function | Callable[[Function], Function]:
    """Mark a function as a tool; nothing runs and nothing is sent.

    Raises:
        InvalidConfig: a setting is wrong; `field` names it.
    """

    def mark(marked: Function) -> Function:
        called = _checked_name(name or f"{OWN}/{marked.__name__}")
        setattr(marked, MARK, {"name": called, **_checked(settings)})
        return marked

    return mark if function is None else mark(function)


def tool_name(function: Callable[..., object]) -> str:
    """Return the name that `@tool` gave a function.

    Raises:
        InvalidSyscall: it gave none.
    """
    marked = getattr(function, MARK, None)
    if not isinstance(marked, dict):
        raise InvalidSyscall(
            f"{function!r} is no tool",
            field="body.tool",
            remedy="give a tool's name, or a function that has `@tool`",
        )
    return str(marked["name"])


def _checked_name(name: str) -> str:
    try:
        return msgspec.convert(name, ToolName)
    except msgspec.ValidationError as error:
        raise InvalidConfig(
            f"{name!r} is no name of a tool", field="name", remedy=TOOL_NAME_RULE
        ) from error


def _checked(settings: ToolOptions) -> dict[str, object]:
    try:
        plain = msgspec.to_builtins(settings)
        return {**msgspec.to_builtins(msgspec.convert(plain, ToolSettings))}
    except (msgspec.ValidationError, TypeError) as error:
        raise InvalidConfig(
            f"{error}", field="tool", remedy="help(aios_sdk.tool) lists the settings"
        ) from error
