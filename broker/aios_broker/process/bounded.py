"""Work whose cost the asker decides: done in a child with little of everything.

    said = await bounded_run("aios_broker.comparing", request, BOUNDS)

No loop and no thread of a worker computes for one agent while all others wait: a child is started
for the one piece of work, gives way to the worker (`nice`), and is killed when its time is over.
"""

import asyncio
import contextlib
import os
import resource
import sys
from dataclasses import dataclass

from aios_broker.contract.errors import ModuleError

NICER = 19  # than the worker: who answers others goes first


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a child may use."""

    cpu_s: int  # its start included, about 0.1 s
    memory_bytes: int
    wall_s: float  # on a machine that has no time for it


class OutOfBounds(Exception):
    """The work would have taken more than the child may use; nothing came of it."""


class OutOfTime(OutOfBounds):
    """It did not end in time, perhaps since the machine had none for it."""


async def bounded_run(program: str, request: bytes, bounds: Bounds) -> bytes:
    """Run a program of ours on a request; return what it says.

    Raises:
        OutOfBounds: It needed more than it may use; `OutOfTime`: by the clock.
        ModuleError: It could not be run, or it broke.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", program),
        *(str(bounds.cpu_s), str(bounds.memory_bytes)),
        stdin=pipe,
        stdout=pipe,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(bounds.wall_s):
            said, _ = await process.communicate(request)
    except TimeoutError as error:
        raise OutOfTime from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if process.returncode == 0:
        return said
    if said == b"" and process.returncode is not None and process.returncode < 0:
        raise OutOfBounds
    raise ModuleError(
        f"{program} ended with exit code {process.returncode}", remedy="see that it is installed"
    )


def accept_bounds(arguments: list[str]) -> None:
    """Bind this process, a child, to what it was started with; its request is read before."""
    cpu_s, memory_bytes = map(int, arguments)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(NICER)
