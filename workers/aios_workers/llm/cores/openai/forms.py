"""Conversations, tools and forms as the OpenAI API has them."""

import json
from collections.abc import Sequence
from typing import Any

from aios_broker.contract.llm import Image, Message, Tool


def message_form(message: Message) -> dict[str, Any]:
    """Return a message as the API has it; images follow when it is sent."""
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    if message.images:
        made["images"] = len(message.images)
    return made


def with_images(messages: Sequence[dict[str, Any]], images: Sequence[Image]) -> list[object]:
    """Return the messages with their images in the API's form: each stands before its text."""
    left = list(images)
    made: list[object] = []
    for message in messages:
        count = message.pop("images", 0)
        if count:
            parts: list[object] = [
                {
                    "type": "image_url",
                    "image_url": {"url": f"data:{image.media_type};base64,{image.data}"},
                }
                for image in left[:count]
            ]
            del left[:count]
            message["content"] = [*parts, {"type": "text", "text": message["content"]}]
        made.append(message)
    return made


def tool_form(tool: Tool) -> dict[str, Any]:
    """Return a tool as the API has it."""
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters or {"type": "object", "properties": {}},
        },
    }


def choice_form(choice: str | None) -> object:
    """Return whether, or which, a tool is to be called."""
    if choice in (None, "auto", "none", "required"):
        return choice or "auto"
    return {"type": "function", "function": {"name": choice}}


def response_form(schema: str) -> dict[str, object]:
    """Return the form of an answer that a JSON schema (as text) allows."""
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": json.loads(schema), "strict": True},
    }
