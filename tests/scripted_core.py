"""A core that says what it is told to, byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

from aios_workers.llm.core import Capabilities, CoreInfo, GenerationRequest, Step
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore


class ObedientCore(SimulatedCore):
    """For cores that make their own tokens: which of their generations were aborted."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[GenerationRequest] = []
        self._aborted: set[str] = set()

    async def abort(self, request_id: str, *, keep: bool) -> None:
        """End a generation at its next token."""
        self._aborted.add(request_id)

    def begin(self, request: GenerationRequest) -> None:
        """Note a request; it is not aborted yet."""
        self.requests.append(request)
        self._aborted.discard(request.request_id)
        self._check(request)

    def is_aborted(self, request: GenerationRequest) -> bool:
        """Whether it was."""
        return request.request_id in self._aborted


class ScriptedCore(ObedientCore):
    """Knows tools by its template, and holds forms by being told the right thing."""

    def __init__(
        self, script: str, *, preemptible: bool = True, can: Capabilities | None = None
    ) -> None:
        super().__init__()
        self._script = tuple(script.encode())
        self._can = can or Capabilities(preemptible=preemptible, constraints=True)

    @property
    def info(self) -> CoreInfo:
        """What it is."""
        return replace(super().info, capabilities=self._can, fingerprint="scripted")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        """Say the rest of the script."""
        self.begin(request)
        for place in range(len(request.resume_ids), min(len(self._script), request.max_tokens)):
            await asyncio.sleep(0)
            if self.is_aborted(request):
                return
            yield Step((self._script[place],))
        cut_off = len(self._script) >= request.max_tokens
        yield Step((), "length" if cut_off else "stop")
