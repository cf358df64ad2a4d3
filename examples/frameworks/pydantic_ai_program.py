"""A Pydantic-AI program: an answer in a form. It knows nothing of the kernel.

OPENAI_BASE_URL and OPENAI_API_KEY say where its model is: the kernel's API, and an agent's token.
"""

from pydantic import BaseModel
from pydantic_ai import Agent


class City(BaseModel):
    """A city."""

    name: str
    country: str


agent = Agent(
    "openai:gpt-4o-mini",
    output_type=City,
    instructions="Name one city.",
    model_settings={"max_tokens": 96, "temperature": 0},
)

if __name__ == "__main__":
    print(agent.run_sync("A city at the sea?").output.model_dump_json())
