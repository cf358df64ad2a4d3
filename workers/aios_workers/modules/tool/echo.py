"""The echo: a whole round through the kernel and no work. For health checks and benchmarks."""

from aios_broker.contract.errors import UnknownModule
from aios_broker.contract.reply import EchoResult
from aios_broker.contract.syscall import Syscall, ToolEcho
from aios_workers.runtime.executor import Done
from aios_workers.runtime.runs import Run


class EchoHandler:
    """A tool worker without tools: it answers echoes."""

    cores: tuple[str, ...] = ()  # tools run on no model

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity  # how many syscalls it runs at the same time

    async def run(self, run: Run, syscall: Syscall) -> Done:
        """Return the text."""
        return self.answer_at_once(run, syscall)

    def answer_at_once(self, run: Run, syscall: Syscall) -> Done:
        """Return the text: there is nothing to wait for."""
        if not isinstance(syscall.body, ToolEcho):
            raise UnknownModule(
                f"{syscall.kind!r} is not built in this version",
                field="body.type",
                remedy="use tool.echo",
            )
        return Done(EchoResult(syscall.body.text))

    async def close(self) -> None:
        """Nothing to free."""
