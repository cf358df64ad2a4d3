"""Do with files what a sentence says: a model plans under a schema, the kernel runs the plan.

The plan is made by one llm syscall of its own, found again by its id when this syscall is run
anew. It is kept when it is first made, so that what a person approved is what runs.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from aios_broker.contract import storage as bodies
from aios_broker.contract.errors import CoreError, InvalidSyscall, KernelError
from aios_broker.contract.llm import JsonFormat, LlmChat, Message
from aios_broker.contract.reply import ChatResult, Result
from aios_broker.contract.storage import Plan, Step, StorageOperate
from aios_broker.contract.syscall import refuse_nul
from aios_workers.approvals.irreversible import Irreversible, Seen, digest_of_parts
from aios_workers.modules.operation import Asked, Work, run_once
from aios_workers.modules.storage.files import append, create, write
from aios_workers.modules.storage.moves import copy, delete, make_directory, move
from aios_workers.modules.storage.namespace import (
    FileStep,
    FileWork,
    namespace_lock,
    on_namespace,
)

MAX_STEPS = 8
MAX_LISTED = 200  # paths that the model is shown
MAX_TOKENS = 700
# What a plan may hold: the body of each step, what does it, and the fields that a model fills in.
_KINDS: Mapping[str, tuple[type[bodies.StorageBody], FileStep[Any], tuple[str, ...]]] = {
    "create": (bodies.StorageCreate, create, ("path", "content")),
    "write": (bodies.StorageWrite, write, ("path", "content")),
    "append": (bodies.StorageAppend, append, ("path", "content")),
    "move": (bodies.StorageMove, move, ("path", "to")),
    "copy": (bodies.StorageCopy, copy, ("path", "to")),
    "delete": (bodies.StorageDelete, delete, ("path",)),
    "mkdir": (bodies.StorageMkdir, make_directory, ("path",)),
}
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
                    for name, (_, _, fields) in _KINDS.items()
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
# A plan is kept as soon as it is made: what runs is what was shown.
_KEEP = """
    INSERT INTO effect (syscall_id, agent_id, kind, result) VALUES (%s, %s, 'plan', %s)
    ON CONFLICT (syscall_id, agent_id) DO NOTHING
"""
_KEPT = "SELECT result FROM effect WHERE syscall_id = %s AND agent_id = %s"

_decoder = msgspec.json.Decoder(Plan)


async def operate(asked: Asked[StorageOperate]) -> Result:
    """Plan, and run the plan in one transaction: all of it or nothing.

    What its steps take away is asked for together, once they are done and not committed.
    """
    plan = await _plan(asked)
    if asked.body.dry_run or not plan.steps:
        return plan

    async def run(work: Work[StorageOperate]) -> Result:
        done = await _run(await on_namespace(work, own=True), plan)
        _show_plan(work, plan)
        return done

    return await run_once(asked, run, *namespace_lock(asked, own=True))


async def _plan(asked: Asked[StorageOperate]) -> Plan:
    """Return the plan of this syscall: the one that was kept, or a new one."""
    body = asked.body
    async with asked.transaction() as work:
        kept = await _kept(work)
        if kept is not None:
            return kept
        rows = await work.rows(_PATHS, {"owner": asked.agent.id, "limit": MAX_LISTED})
    listed = "\n".join(row.path for row in rows) or "(no files yet)"
    prompt = f"Files and directories:\n{listed}\n\nInstruction: {body.instruction}"
    chat = LlmChat(
        (Message("system", _SYSTEM), Message("user", prompt)),
        core=body.core,
        max_tokens=MAX_TOKENS,
        format=JsonFormat(_SCHEMA),
    )
    result = await asked.services.calls.call(asked.syscall, chat, "plan")
    if not isinstance(result, ChatResult):
        raise CoreError("the model did not answer with a plan")
    plan = Plan(body.instruction, _steps(result.text), done=False, model=result.model)
    async with asked.transaction() as work:
        values = (_key(work), asked.agent.id, msgspec.json.encode(plan))
        await work.cursor.execute(_KEEP, values)
        return await _kept(work) or plan  # another run of this syscall may have kept one meanwhile


async def _kept(work: Work[StorageOperate]) -> Plan | None:
    """Return the plan that this syscall made when it ran before."""
    rows = await work.rows(_KEPT, (_key(work), work.agent.id))
    return _decoder.decode(rows[0].result) if rows else None


def _key(work: Work[StorageOperate]) -> str:
    return f"{work.asked.syscall.id}.plan"


def _steps(text: str) -> tuple[Step, ...]:
    """Return the steps of a model's answer, each checked as the syscall that it stands for.

    Raises:
        InvalidSyscall: It is no plan; nothing was done.
    """
    try:
        found: list[dict[str, Any]] = msgspec.json.decode(text)["steps"]
        refuse_nul(found)
        return tuple(_step(each) for each in found)
    except (msgspec.MsgspecError, KeyError, TypeError, RecursionError) as error:
        raise InvalidSyscall(
            f"the model made no plan that can be run: {error}",
            field="body.instruction",
            remedy="say it more plainly, or name a better model (core)",
        ) from error


def _step(planned: dict[str, Any]) -> Step:
    arguments = dict(planned)
    kind = f"storage.{arguments.pop('do')}"
    body = msgspec.convert({**arguments, "type": kind}, bodies.StorageBody)
    if type(body) not in {allowed for allowed, _, _ in _KINDS.values()}:
        raise KeyError(kind)
    return Step(kind, arguments)


def _show_plan(work: Work[StorageOperate], plan: Plan) -> None:
    """Put the whole plan before what its steps took, for the person who decides about all."""
    taken = work.pending.taken
    if not taken:
        return
    lines = [
        f"{number}. {step.kind} {msgspec.json.encode(step.arguments).decode()}"
        for number, step in enumerate(plan.steps, start=1)
    ]
    what = f"run a plan of {len(plan.steps)} steps on files of {work.agent.name}"
    told = digest_of_parts(lines)
    seen = Seen("plan", _key(work), count=len(lines), digest=told, name="the plan as a whole")
    shown = Irreversible(taken[0].operation, what, (seen,), lossy=False, diff="\n".join(lines))
    taken.insert(0, shown)


async def _run(work: FileWork[StorageOperate], plan: Plan) -> Plan:
    """Run the steps, all or none: they share the transaction."""
    done: list[Step] = []
    for number, step in enumerate(plan.steps, start=1):
        body = msgspec.convert({**step.arguments, "type": step.kind}, bodies.StorageBody)
        _, do, _ = _KINDS[step.kind.removeprefix("storage.")]
        try:
            await do(work.step(body))
        except KernelError as error:
            raise InvalidSyscall(
                f"step {number} of the plan, {step.kind}, was refused, so none was done: {error}",
                field="body.instruction",
                remedy="say it differently; a dry_run shows the plan",
            ) from error
        done.append(msgspec.structs.replace(step, outcome="done"))
    return msgspec.structs.replace(plan, steps=tuple(done), done=True)
