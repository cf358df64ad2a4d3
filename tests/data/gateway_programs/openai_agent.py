"""OpenAI's Agents SDK: an agent whose answer has a form."""

import json
from typing import Literal

from agents import Agent, ModelSettings, Runner
from pydantic import BaseModel


class Point(BaseModel):
    x: Literal[1, 2, 3]
    y: bool


agent = Agent(
    name="pilot",
    instructions="Say where.",
    model="gpt-4o",
    output_type=Point,
    model_settings=ModelSettings(max_tokens=200),
)
found = Runner.run_sync(agent, "where?")
print(json.dumps({"point": found.final_output.model_dump()}))
