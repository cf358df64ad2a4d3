"""A LangGraph program: drafts a line, then judges it in a form. It knows nothing of the kernel.

OPENAI_BASE_URL and OPENAI_API_KEY say where its model is: the kernel's API, and an agent's token.
"""

from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel, Field
from typing_extensions import TypedDict


class Verdict(BaseModel):
    """What is thought of a line."""

    fits: bool
    score: int = Field(ge=0, le=10)


class State(TypedDict, total=False):
    """What the graph knows."""

    topic: str
    line: str
    verdict: Verdict


model = ChatOpenAI(model="gpt-4o-mini", temperature=0, max_tokens=48)


def draft(state: State) -> State:
    """Write a line."""
    text = "".join(piece.text for piece in model.stream(f"One line about {state['topic']}."))
    return {"line": text}


def judge(state: State) -> State:
    """Judge it."""
    judges = model.with_structured_output(Verdict)
    return {"verdict": judges.invoke(f"Does this fit {state['topic']}? {state['line']}")}


graph = StateGraph(State)
graph.add_node("draft", draft)
graph.add_node("judge", judge)
graph.add_edge(START, "draft")
graph.add_edge("draft", "judge")
graph.add_edge("judge", END)

if __name__ == "__main__":
    done = graph.compile().invoke({"topic": "the sea"})
    print(done["line"].strip())
    print(done["verdict"].model_dump_json())
