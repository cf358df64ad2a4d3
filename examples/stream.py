"""Print an answer while it is generated. Start a kernel first: `aios up`."""

import asyncio

from aios_sdk import AsyncAgent, Message


async def main() -> None:
    async with AsyncAgent("storyteller") as me:
        conversation = [
            Message("system", "You tell short stories."),
            Message("user", "A story about a queue, please."),
        ]
        story = me.llm.chat.stream(conversation, max_tokens=64, temperature=0.8, seed=7)
        async for piece in story:
            print(piece, end="", flush=True)
        print(f"\n[{story.result.usage.output_tokens} tokens, {story.result.finish_reason}]")


if __name__ == "__main__":
    asyncio.run(main())
