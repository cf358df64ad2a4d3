"""A client process: programs that ask the kernel for things, and a log of all they say and hear.

    python -m benchmarks.chaos.client --name c1 --folder DIR --url unix:///... --seed 7

It goes on until SIGTERM: then it asks for nothing new, waits for what is under way, and leaves
with 0. Killed and started again under the same name, it attaches to what its earlier lives
asked for and never heard of.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from aios_broker.client.pending import Pending
from aios_broker.client.redis_transport import RedisTransport
from aios_broker.client.session import Limits, Session
from aios_broker.config import environment
from aios_broker.contract.errors import KernelError
from aios_broker.contract.llm import ContextExpand, LlmChat, Message
from aios_broker.contract.names import Owner
from aios_broker.contract.syscall import Body, Syscall, ToolEcho
from aios_broker.retry import patiently
from benchmarks.chaos.faulty import Faults, jump_clocks
from benchmarks.chaos.history import (
    Acknowledged,
    Born,
    Ended,
    Log,
    Planned,
    Sent,
    read_logs,
    wall_s,
)
from benchmarks.chaos.plan import VARIABLE, read_plan
from benchmarks.chaos.poison import KINDS, MARK, SLOW
from benchmarks.chaos.witness import Mischief, Witness

AGENT = "chaos"
OWNER = Owner("default", AGENT)
DEADLINE_S = 240.0
LIMITS = Limits(recheck_s=2.0, patience_s=60.0)
CHAT_TOKENS = (8, 120)
UNKNOWN = "unknown-syscall"
TEXT = "é世🚢 "  # of several bytes: what is cut apart must come together again


@dataclass(frozen=True, slots=True)
class Load:
    """How many programs of each kind, and how they pause."""

    echoes: int = 4
    batches: int = 1
    chats: int = 2
    diaries: int = 1
    cancels: int = 1
    slows: int = 1
    poisons: int = 0
    pause_s: float = 0.05


class Client:
    """All programs of one process, on one session."""

    def __init__(self, name: str, session: Session, log: Log, dice: random.Random) -> None:
        self._client = f"{name}.{os.getpid()}"
        self._session = session
        self._log = log
        self._dice = dice
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Ask for nothing new."""
        self._leaving.set()

    async def run(self, load: Load, unheard: set[str]) -> None:
        """Run all programs until they are to leave and have heard all they asked for."""
        self._log.write(Born(wall_s(), self._client))
        kinds: tuple[tuple[int, Callable[[str, int], Awaitable[None]], float], ...] = (
            (load.echoes, self._echo, 1.0),
            (load.batches, self._batch, 4.0),
            (load.chats, self._chat, 1.0),
            (load.diaries, self._diary, 2.0),
            (load.cancels, self._cancel, 10.0),
            (load.slows, self._slow, 20.0),
            (load.poisons, self._poison, 100.0),
        )
        async with asyncio.TaskGroup() as group:
            for syscall_id in unheard:
                group.create_task(self._find(syscall_id))
            for count, step, weight in kinds:
                for number in range(count):
                    program = f"{self._client}.{step.__name__.strip('_')}{number}"
                    group.create_task(self._repeat(program, step, weight * load.pause_s))

    async def _repeat(
        self, program: str, step: Callable[[str, int], Awaitable[None]], pause_s: float
    ) -> None:
        number = 0
        while not self._leaving.is_set():
            await step(program, number)
            number += 1
            try:
                async with asyncio.timeout(pause_s * self._dice.uniform(0.2, 1.8)):
                    await self._leaving.wait()
            except TimeoutError:
                pass

    # One step of each kind of program.

    async def _echo(self, program: str, number: int) -> None:
        await self._heard(self._ask(program, number, f"{TEXT}{number}"))

    async def _batch(self, program: str, number: int) -> None:
        """Ask for many at once: each is a program of its own, they have no order."""
        asked = [
            self._ask(f"{program}.{number}.{index}", 0, f"{TEXT}{number}.{index}")
            for index in range(self._dice.randint(5, 25))
        ]
        await asyncio.gather(*map(self._heard, asked))

    async def _chat(self, program: str, number: int) -> None:
        await self._heard(self._ask_chat(program, number, "chat"))

    async def _diary(self, program: str, number: int) -> None:
        text = f"{number:05d}"
        body = ContextExpand((Message("user", text),), context=program)
        await self._heard(
            self._submit(
                Planned(wall_s(), self._fresh_id(), self._client, program, number, "expand", text),
                body,
            )
        )

    async def _cancel(self, program: str, number: int) -> None:
        pending = self._ask_chat(program, number, "cancel")
        try:
            async with asyncio.timeout(self._dice.uniform(0.0, 0.5)):
                await asyncio.shield(pending.ended)
        except TimeoutError:
            with contextlib.suppress(KernelError):  # an outage: then it ends by itself
                await self._session.cancel(pending)
        await self._heard(pending)

    async def _slow(self, program: str, number: int) -> None:
        await self._heard(self._ask(program, number, f"{SLOW}{number}"))

    async def _poison(self, program: str, number: int) -> None:
        text = f"{MARK}{KINDS[number % len(KINDS)]}:{number}"
        await self._heard(self._ask(program, number, text, "poison"))

    # Asking and hearing.

    def _ask(self, program: str, number: int, text: str, kind: str = "echo") -> Pending:
        planned = Planned(wall_s(), self._fresh_id(), self._client, program, number, kind, text)
        return self._submit(planned, ToolEcho(text))

    def _ask_chat(self, program: str, number: int, kind: str) -> Pending:
        tokens = self._dice.randint(*CHAT_TOKENS)
        text = f"{program} {number}"
        body = LlmChat(
            (Message("user", text),),
            max_tokens=tokens,
            return_ids=True,
            stream=self._dice.random() < 0.5,
            temperature=self._dice.choice((0.0, 0.8)),
            seed=self._dice.getrandbits(31),
        )
        return self._submit(
            Planned(
                wall_s(),
                self._fresh_id(),
                self._client,
                program,
                number,
                kind,
                text,
                tokens,
                body.temperature,
                body.seed or 0,
            ),
            body,
        )

    def _fresh_id(self) -> str:
        return self._session.ids(OWNER).fresh()

    def _submit(self, planned: Planned, body: Body) -> Pending:
        self._log.write(planned)
        return self._session.submit(
            Syscall(planned.id, AGENT, body, program=planned.program, deadline_s=DEADLINE_S)
        )

    async def _heard(self, pending: Pending) -> None:
        await asyncio.shield(pending.accepted)
        if pending.was_accepted:
            self._log.write(Acknowledged(wall_s(), pending.id))
        await asyncio.shield(pending.ended)
        self._note_end(pending)

    async def _find(self, syscall_id: str) -> None:
        """Hear of what an earlier life asked for; one that never reached the kernel is nothing."""
        pending = self._session.attach(syscall_id, OWNER)
        await asyncio.shield(pending.ended)
        if (
            pending.reply is None
            or pending.reply.error is None
            or (pending.reply.error.code != UNKNOWN)
        ):
            self._note_end(pending)

    def _note_end(self, pending: Pending) -> None:
        assert pending.reply is not None
        error = pending.reply.error
        self._log.write(Ended(wall_s(), pending.id, error.code if error else ""))


def unheard_of(folder: Path, name: str) -> set[str]:
    """Return the ids that earlier lives sent, and were never told of."""
    records = read_logs(sorted(folder.glob(f"{name}.*.jsonl")))
    sent = {each for record in records if isinstance(record, Sent) for each in record.ids}
    return sent - {record.id for record in records if isinstance(record, Ended)}


async def serve(options: argparse.Namespace) -> None:
    """Run a client until SIGTERM."""
    dice = random.Random(f"{options.seed}/{options.name}/{os.getpid()}")
    unheard = unheard_of(options.folder, options.name)
    transport = RedisTransport(options.url, options.name)
    mischief = Mischief(options.sent_twice, options.lost)
    with Log(options.folder / f"{options.name}.{os.getpid()}.jsonl") as log:
        session = Session(Witness(transport, log, mischief, dice), LIMITS)
        await patiently(session.open, LIMITS.patience_s)  # it may begin in an outage
        client = Client(options.name, session, log, dice)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, client.leave)
        load = Load(
            options.echoes,
            options.batches,
            options.chats,
            options.diaries,
            options.cancels,
            options.slows,
            options.poisons,
            options.pause_s,
        )
        try:
            await client.run(load, unheard)
        finally:
            await session.aclose()


def read_options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos.client")
    parser.add_argument("--name", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sent-twice", type=float, default=0.0)
    parser.add_argument("--lost", type=float, default=0.0)
    parser.add_argument("--pause-s", type=float, default=Load().pause_s)
    for name in ("echoes", "batches", "chats", "diaries", "cancels", "slows", "poisons"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Load(), name))
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the client."""
    plan = read_plan(environment().get(VARIABLE))
    jump_clocks(plan)
    Faults(plan).install()
    asyncio.run(serve(read_options(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
