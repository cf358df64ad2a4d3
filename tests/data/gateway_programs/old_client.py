"""The OpenAI client of 2024, as agents pinned it."""

import asyncio
import json

from openai import AsyncOpenAI, OpenAI, __version__

client = OpenAI()
hello = [{"role": "user", "content": "hello"}]
whole = client.chat.completions.create(model="gpt-4", messages=hello, max_tokens=8, seed=1)
stream = client.chat.completions.create(
    model="gpt-4",
    messages=hello,
    max_tokens=8,
    seed=1,
    stream=True,
    stream_options={"include_usage": True},
)
pieces = list(stream)


async def again() -> str:
    async with AsyncOpenAI() as other:
        answer = await other.chat.completions.create(
            model="gpt-4", messages=hello, max_tokens=8, seed=1
        )
        return answer.choices[0].message.content or ""


print(
    json.dumps(
        {
            "version": __version__,
            "whole": whole.choices[0].message.content,
            "streamed": "".join(p.choices[0].delta.content or "" for p in pieces if p.choices),
            "tokens": pieces[-1].usage.completion_tokens,
            "again": asyncio.run(again()),
            "dimensions": len(client.embeddings.create(model="x", input="one").data[0].embedding),
            "plain": client.completions.create(model="x", prompt="once", max_tokens=4)
            .choices[0]
            .text,
            "models": [model.id for model in client.models.list()],
        }
    )
)
