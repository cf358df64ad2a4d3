"""One answer: what becomes of it when its core fails."""

from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from aios_broker.contract.errors import CoreError
from aios_broker.contract.llm import PENALTIES
from aios_workers.llm.answers import AnswerText
from aios_workers.llm.core import CoreInfo, GenerationRequest, Sampling, Step
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCore
from aios_workers.llm.generation import Branch
from aios_workers.llm.slicing import ResumeCost
from aios_workers.runtime.executor import BackgroundTasks


class Failing(SimulatedCore):
    """Fails once, after its first token; cannot go on where there are penalties."""

    streams = 0

    @property
    def info(self) -> CoreInfo:
        info = super().info
        return replace(info, capabilities=replace(info.capabilities, lost_by_suspension=PENALTIES))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Step, None]:
        self.streams += 1
        async for step in super().generate(request):
            yield step
            if self.streams == 1:
                raise CoreError("gone")


def branch(core: SimulatedCore, sampling: Sampling) -> Branch:
    request = GenerationRequest("ab" * 16, (1, 2, 3), 8, sampling)
    return Branch(core, request, AnswerText(), BackgroundTasks(), ResumeCost())


async def test_an_answer_that_can_be_resumed_goes_on_after_a_failure() -> None:
    core = Failing()
    answer = branch(core, Sampling())
    await answer.run(lambda _: None)
    assert (core.streams, answer.finish is not None) == (2, True)


async def test_one_that_cannot_leaves_the_failure_to_another_attempt() -> None:
    core = Failing()
    with pytest.raises(CoreError, match="gone"):
        await branch(core, Sampling(presence_penalty=1.0)).run(lambda _: None)
    assert core.streams == 1
