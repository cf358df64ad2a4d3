"""OpenAI's Agents SDK: an agent whose answer has a form, and that has a tool beside it."""

import json
from typing import Literal

from agents import Agent, ModelSettings, Runner, function_tool
from pydantic import BaseModel


class Point(BaseModel):
    x: Literal[1, 2, 3]
    y: bool


@function_tool
def height(place: Literal["here", "there"]) -> int:
    """Say how high a place is."""
    return len(place)


agent = Agent(
    name="pilot",
    instructions="Say where.",
    model="gpt-4o",
    output_type=Point,
    tools=[height],
    model_settings=ModelSettings(max_tokens=2_000),
)
found = Runner.run_sync(agent, "where?", max_turns=30)
print(json.dumps({"point": found.final_output.model_dump()}))
