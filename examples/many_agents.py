"""Many agents at once share the kernel's cores. Start a kernel first: `aios up`.

Each agent is a program of its own, so the scheduler is fair between them: short questions do
not wait behind long stories.
"""

import argparse
import asyncio

from aios_sdk import AsyncAgent, KernelError

QUESTION = "Name a colour."
STORY = "Tell a long story about the sea."
QUESTION_TOKENS = 8
STORY_TOKENS = 96


async def ask(number: int) -> str:
    is_short = number % 2 == 0
    async with AsyncAgent(f"agent-{number}", program=f"task-{number}") as me:
        patient = me.with_options(timeout_s=300)
        if is_short:
            call = patient.llm.chat.start(QUESTION, max_tokens=QUESTION_TOKENS)
        else:
            call = patient.llm.chat.start(STORY, max_tokens=STORY_TOKENS)
        try:
            answer = await call
        except KernelError as error:  # one agent's failure is not the others'
            return f"agent-{number}: {error.code}: {error}"
    waited_s = call.timings.queued_s if call.timings else 0.0
    return f"agent-{number}: {answer.usage.output_tokens} tokens, waited {waited_s:.3f} s"


async def main(agents: int) -> None:
    for line in await asyncio.gather(*(ask(number) for number in range(agents))):
        print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=8)
    asyncio.run(main(parser.parse_args().agents))
