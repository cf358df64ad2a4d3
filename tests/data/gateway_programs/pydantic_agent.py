"""Pydantic-AI: an agent whose answer is a call of its output tool."""

import json
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent


class Point(BaseModel):
    x: Literal[1, 2, 3]
    y: bool


agent = Agent("openai-chat:gpt-4o", output_type=Point, instructions="Say where.")
found = agent.run_sync("where?", model_settings={"max_tokens": 200})
print(json.dumps({"point": found.output.model_dump()}))
