"""Whether a constraint can be kept, found out in a process that may die of it.

Some grammars overflow the compiler's stack, others keep it busy for minutes; neither may happen
to a worker or to a core. A constraint is compiled once in a child with little of everything, and
only what it survives is compiled where it is used. What was found is remembered.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
import threading
from collections import OrderedDict

import msgspec

from aios_broker.contract.errors import CoreError, InvalidSyscall
from aios_workers.llm.constraint import Compiler, not_kept, refusal
from aios_workers.llm.core import Constraint

CPU_LIMIT_S = 2  # imports and start of the child, about 0.2 s, included
WALL_LIMIT_S = 20.0  # on a machine that has no time for it
MEMORY_LIMIT_BYTES = 1 << 30
STACK_BYTES = 2 << 20  # cores have four times as much: what fits here fits there
REMEMBERED = 256
FORCED_BYTES = 8  # read where there is no choice: what cannot go on is found out here
_BYTES = 256


class ConstraintChecker:
    """Checks constraints; the latest verdicts are remembered."""

    def __init__(self) -> None:
        self._verdicts: OrderedDict[Constraint, str] = OrderedDict()
        self.children = 0  # that were started

    async def check(self, constraint: Constraint) -> None:
        """Return if a core can keep it.

        Raises:
            InvalidSyscall: it is wrong, unsupported, too large, or satisfied by no text.
            CoreError: it could not be found out.
        """
        verdict = self._verdicts.get(constraint)
        if verdict is None:
            self.children += 1
            verdict = self._verdicts[constraint] = await _verdict(constraint)
            if len(self._verdicts) > REMEMBERED:
                self._verdicts.popitem(last=False)
        else:
            self._verdicts.move_to_end(constraint)
        if verdict:
            raise refusal(constraint, verdict)


async def check(constraint: Constraint) -> None:
    """Return if a core can keep a constraint; see `ConstraintChecker.check`."""
    await ConstraintChecker().check(constraint)


async def _verdict(constraint: Constraint) -> str:
    """Return the message of why a constraint cannot be kept; empty: it can."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "aios_workers.llm.constraint_check"),
        stdin=pipe,
        stdout=pipe,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(WALL_LIMIT_S):
            said, _ = await process.communicate(msgspec.json.encode(constraint))
    except TimeoutError as error:
        raise CoreError(f"a constraint could not be checked within {WALL_LIMIT_S:g} s") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if process.returncode == 0:
        return said.decode("utf-8", "replace")
    if said == b"" and process.returncode is not None and process.returncode < 0:
        return not_kept(constraint, "it is too large, too deep or too ambiguous to be compiled")
    raise CoreError(f"the check of a constraint ended with exit code {process.returncode}")


def main() -> int:
    """Compile the constraint on standard input and print what is wrong with it."""
    constraint = msgspec.json.decode(sys.stdin.buffer.read(), type=Constraint)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    verdicts: list[str] = []
    thread = threading.Thread(target=lambda: verdicts.append(_compile(constraint)))
    thread.start()
    thread.join()
    if not verdicts:
        return 1
    sys.stdout.write(verdicts[0])
    return 0


def _compile(constraint: Constraint) -> str:
    """Compile for a vocabulary of single bytes; read what every text of it begins with."""
    compiler = Compiler([*(bytes([byte]) for byte in range(_BYTES)), b""], (_BYTES,), list)
    try:
        matcher = compiler.start(constraint)
        for _ in range(FORCED_BYTES):
            allowed = matcher.allowed().nonzero()[0]
            if len(allowed) != 1 or allowed[0] == _BYTES:
                break
            matcher.add(int(allowed[0]))
    except InvalidSyscall as error:
        return error.message
    return ""


if __name__ == "__main__":
    sys.exit(main())
