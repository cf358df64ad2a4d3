"""A program of the OpenAI Agents SDK: an agent with a tool. It knows nothing of the kernel.

OPENAI_BASE_URL and OPENAI_API_KEY say where its model is: the kernel's API, and an agent's token.
"""

from agents import Agent, ModelSettings, Runner, function_tool, set_tracing_disabled

set_tracing_disabled(True)  # its traces would go to a host of their own


@function_tool
def weather(city: str) -> str:
    """Tell the weather in a city.

    Args:
        city: Its name.
    """
    return f"It is sunny in {city}."


agent = Agent(
    name="guide",
    instructions="You tell people the weather.",
    model="gpt-4o-mini",
    tools=[weather],
    model_settings=ModelSettings(tool_choice="required", max_tokens=64, temperature=0),
    tool_use_behavior="stop_on_first_tool",
)

if __name__ == "__main__":
    print(Runner.run_sync(agent, "What is the weather in Lisbon?").final_output)
