"""Answers with a form: JSON by a schema, a tool call, several answers, the best of a beam search.

Start a kernel first: `aios up`.
"""

import asyncio
import json

from aios_sdk import AsyncAgent, Message, Tool

CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "rivers": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["name", "rivers"],
    "additionalProperties": False,
}
ADD = Tool(
    "add",
    "Adds two numbers.",
    {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "minimum": 0, "maximum": 99},
            "b": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    },
)


async def main() -> None:
    async with AsyncAgent("clerk") as me:
        city = await me.llm.chat(
            "Invent a city.", format={"type": "json", "json_schema": CITY}, max_tokens=160
        )
        print("city:", json.loads(city.text))

        talk = [Message("user", "What is 17 + 25?")]
        asked = await me.llm.chat(talk, tools=[ADD], tool_choice="required", max_tokens=80)
        [call] = asked.tool_calls
        numbers = json.loads(call.arguments)
        print("call:", call.name, numbers)
        talk.append(Message("assistant", asked.text, tool_calls=asked.tool_calls))
        talk.append(Message("tool", str(numbers["a"] + numbers["b"]), tool_call_id=call.id))
        await me.llm.chat(talk, tools=[ADD], tool_choice="none", max_tokens=24)

        several = await me.llm.chat("Name a colour.", n=3, temperature=1.0, seed=7, max_tokens=6)
        print("answers:", len(several.choices))

        beams = await me.llm.chat("Name a colour.", beam_width=3, max_tokens=6)
        print("beams:", len(beams.choices))


if __name__ == "__main__":
    asyncio.run(main())
