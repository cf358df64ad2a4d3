"""LangGraph: a graph of two steps, one of them held to a form; and embeddings."""

import json
from typing import Literal, TypedDict

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel


class Point(BaseModel):
    x: Literal[1, 2, 3]
    y: bool


class State(TypedDict, total=False):
    question: str
    draft: str
    point: Point


model = ChatOpenAI(model="gpt-4o", max_tokens=200)


def draft(state: State) -> State:
    return {"draft": "".join(str(p.content) for p in model.bind(max_tokens=8).stream("hello"))}


def point(state: State) -> State:
    return {"point": model.with_structured_output(Point).invoke(state["draft"])}


graph = StateGraph(State)
graph.add_node("draft", draft)
graph.add_node("point", point)
graph.add_edge(START, "draft")
graph.add_edge("draft", "point")
graph.add_edge("point", END)
found = graph.compile().invoke({"question": "where?"})
vectors = OpenAIEmbeddings(check_embedding_ctx_length=False).embed_documents(["one", "two"])
print(
    json.dumps(
        {"draft": found["draft"], "point": found["point"].model_dump(), "vectors": len(vectors)}
    )
)
