"""Do with files what a sentence says: a model plans under a schema, the kernel runs the plan.

The plan is made by one llm syscall of its own, found again by its id when this syscall is run
anew. It is kept when it is first made, so that what a person approved is what runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from aios_broker.contract import storage as bodies
from aios_broker.contract.access import OperationClass
from aios_broker.contract.errors import CoreError, InvalidSyscall, KernelError
from aios_broker.contract.files import Plan, Step
from aios_broker.contract.llm import JsonFormat, LlmChat, Message
from aios_broker.contract.reply import ChatResult, Result
from aios_broker.contract.syscall import Body
from aios_broker.store.effects import earlier_effect, enter_effect
from aios_broker.store.plans import keep_plan, kept_plan
from aios_workers.gate import Irreversible
from aios_workers.state_ground import StateGround
from aios_workers.state_handler import Asked, Operation
from aios_workers.storage.change import Step as Run
from aios_workers.storage.change import StorageLimits, Work

MAX_STEPS = 8
MAX_LISTED = 200  # paths that the model is shown
MAX_TOKENS = 700
_KINDS: Mapping[str, tuple[type[Body], tuple[str, ...]]] = {
    "create": (bodies.StorageCreate, ("path", "content")),
    "write": (bodies.StorageWrite, ("path", "content")),
    "append": (bodies.StorageAppend, ("path", "content")),
    "move": (bodies.StorageMove, ("path", "to")),
    "copy": (bodies.StorageCopy, ("path", "to")),
    "delete": (bodies.StorageDelete, ("path",)),
    "mkdir": (bodies.StorageMkdir, ("path",)),
}
_LOSSY = frozenset(("write", "move", "copy", "delete"))
_TEXT = {"type": "string", "maxLength": 2_000}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["steps"],
    "properties": {
        "steps": {
            "type": "array",
            "maxItems": MAX_STEPS,
            "items": {
                "anyOf": [
                    {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["do", *fields],
                        "properties": {"do": {"const": name}, **dict.fromkeys(fields, _TEXT)},
                    }
                    for name, (_, fields) in _KINDS.items()
                ]
            },
        }
    },
}
_SYSTEM = (
    "You turn an instruction about files into a plan of at most 8 steps, as JSON. Steps: create, "
    "write (replaces), append, move, copy, delete, mkdir. Use the paths that are listed. Do no "
    "more than what is asked."
)
_PATHS = """
    SELECT path FROM file WHERE owner_id = %(owner)s
    UNION ALL SELECT path || '/' FROM directory WHERE owner_id = %(owner)s AND path <> '/'
    ORDER BY 1 LIMIT %(limit)s
"""


def operating(
    ground: StateGround, limits: StorageLimits, steps: Mapping[type[Body], Run]
) -> Operation:
    """Return the operation; `steps` are those that a plan may be made of."""

    async def operate(asked: Asked) -> Result:
        body: bodies.StorageOperate = asked.body
        plan = await _plan(ground, limits, asked)
        if body.dry_run or not plan.steps:
            return plan
        async with ground.store.as_agent(asked.agent) as cursor:
            earlier = await earlier_effect(cursor, asked.syscall)
            if earlier is not None:
                return earlier
            work = Work(ground, limits, asked, asked.agent, cursor)
            await work.lock_namespace()
            await _ask_for_all(work, plan)
            done = await _run(work, plan, steps)
            await enter_effect(cursor, asked.agent, asked.syscall, done)
            return done

    return operate


async def _plan(ground: StateGround, limits: StorageLimits, asked: Asked) -> Plan:
    """Return the plan of this syscall: the one that was kept, or a new one."""
    body: bodies.StorageOperate = asked.body
    async with ground.store.as_agent(asked.agent) as cursor:
        kept = await kept_plan(cursor, asked.syscall)
        if kept is not None:
            return kept
        work = Work(ground, limits, asked, asked.agent, cursor)
        rows = await work.rows(_PATHS, {"owner": asked.agent.id, "limit": MAX_LISTED})
    listed = "\n".join(row.path for row in rows) or "(no files yet)"
    prompt = f"Files and directories:\n{listed}\n\nInstruction: {body.instruction}"
    chat = LlmChat(
        (Message("system", _SYSTEM), Message("user", prompt)), core=body.core,
        max_tokens=MAX_TOKENS, format=JsonFormat(_SCHEMA),
    )  # fmt: skip
    result = await ground.calls.call(asked.syscall, chat, "plan")
    if not isinstance(result, ChatResult):
        raise CoreError("the model did not answer with a plan")
    plan = Plan(body.instruction, _steps(result.text), done=False, model=result.model)
    async with ground.store.as_agent(asked.agent) as cursor:
        return await keep_plan(cursor, asked.agent, asked.syscall, plan)


def _steps(text: str) -> tuple[Step, ...]:
    """Return the steps of a model's answer, each checked as the syscall that it stands for.

    Raises:
        InvalidSyscall: It is no plan; nothing was done.
    """
    try:
        found: list[dict[str, Any]] = msgspec.json.decode(text)["steps"]
        return tuple(_step(each) for each in found)
    except (msgspec.MsgspecError, KeyError, TypeError, RecursionError) as error:
        raise InvalidSyscall(
            f"the model made no plan that can be run: {error}", field="body.instruction",
            remedy="say it more plainly, or name a better model (core)",
        ) from error  # fmt: skip


def _step(planned: dict[str, Any]) -> Step:
    arguments = dict(planned)
    kind = f"storage.{arguments.pop('do')}"
    body = msgspec.convert({**arguments, "type": kind}, bodies.StorageBody)
    if type(body) not in {allowed for allowed, _ in _KINDS.values()}:
        raise KeyError(kind)
    return Step(kind, arguments)


async def _ask_for_all(work: Work, plan: Plan) -> None:
    """Have a person allow the whole plan, where a step of it could lose something."""
    lossy = [step for step in plan.steps if step.kind.removeprefix("storage.") in _LOSSY]
    if not lossy:
        return
    shown = "\n".join(
        f"{number}. {step.kind} {msgspec.json.encode(step.arguments).decode()}"
        for number, step in enumerate(plan.steps, start=1)
    )
    what = f"run a plan of {len(plan.steps)} steps on files of {work.asked.agent.name}"
    deletes = any(step.kind == "storage.delete" for step in lossy)
    operation: OperationClass = "delete" if deletes else "overwrite"
    asked = work.asked
    await work.ground.gate.check(
        work.cursor, asked.agent, asked.syscall, asked.body,
        Irreversible(operation, what, diff=shown),
    )  # fmt: skip


async def _run(work: Work, plan: Plan, steps: Mapping[type[Body], Run]) -> Plan:
    """Run the steps, all or none: they share the transaction."""
    done: list[Step] = []
    for number, step in enumerate(plan.steps, start=1):
        body = msgspec.convert({**step.arguments, "type": step.kind}, bodies.StorageBody)
        inner = replace(work, asked=replace(work.asked, body=body), allowed=True)
        try:
            await steps[type(body)](inner)
        except KernelError as error:
            raise InvalidSyscall(
                f"step {number} of the plan, {step.kind}, was refused, so none was done: {error}",
                field="body.instruction", remedy="say it differently; a dry_run shows the plan",
            ) from error  # fmt: skip
        done.append(msgspec.structs.replace(step, outcome="done"))
    return msgspec.structs.replace(plan, steps=tuple(done), done=True)
