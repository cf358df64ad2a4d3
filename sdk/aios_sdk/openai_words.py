"""What programs say that were written for OpenAI's API: taken where it means the same here.

Messages and tools are data that programs carry with them: they are taken as they are. Options are
written anew with each call: another name for one is answered with ours.
"""

from collections.abc import Mapping, Sequence

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.llm import Message, Tool

OPTIONS = {
    "best_of": "use n=, or beam_width=",
    "function_call": "use tool_choice=",
    "functions": "use tools=",
    "input": "the first argument is the prompt, or the list of messages",
    "instructions": 'use a message with the role "system"',
    "max_completion_tokens": "use max_tokens=",
    "max_new_tokens": "use max_tokens=",
    "max_output_tokens": "use max_tokens=",
    "model": "use core=: a core's name, an alias of it, or the name of its model",
    "prompt": "the first argument is the prompt, or the list of messages",
    "reasoning_effort": "leave it out: a model's own template decides",
    "response_format": 'use format={"type": "json", "json_schema": SCHEMA}, or {"type": "json"}',
    "stop_sequences": "use stop=",
    "stream_options": "use me.llm.chat.stream(...): its .result has the usage at the end",
    "system": 'use a message with the role "system"',
    "timeout": "use me.with_options(timeout_s=...).llm.chat(...)",
    "top_logprobs": "use logprobs=, with their number",
    "user": "the agent's name says who it is: Agent(NAME)",
}
STREAM = (
    "use me.llm.chat.stream(...), which yields the text; or me.llm.chat.start(..., stream=True) "
    "and .events()"
)
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")


def refuse_other_options(options: Mapping[str, object]) -> None:
    """Refuse an option of another API, and say what it is called here.

    Raises:
        InvalidSyscall: `field` is the option.
    """
    for name in options.keys() & OPTIONS.keys():
        raise InvalidSyscall(
            f"chat has no option {name!r}", field=f"body.{name}", remedy=OPTIONS[name]
        )


def turn(message: object) -> object:
    """Return a message as the kernel has it; what is none is left for the contract to refuse."""
    if isinstance(message, Message) or not isinstance(message, Mapping):
        return message
    said = dict(message)
    if said.get("role") == "developer":
        said["role"] = "system"
    content = said.get("content", "")
    if content is None:
        said["content"] = ""
    elif isinstance(content, Sequence) and not isinstance(content, str | bytes):
        texts, images = _parts(content)
        said["content"] = "\n".join(texts)
        if images:
            said["images"] = images
    elif "content" not in said and said.get("tool_calls"):
        said["content"] = ""
    if calls := said.get("tool_calls"):
        said["tool_calls"] = [_call(each) for each in calls] if isinstance(calls, list) else calls
    elif "tool_calls" in said and calls is None:
        del said["tool_calls"]
    return said


def _parts(content: Sequence[object]) -> tuple[list[str], list[object]]:
    """Return the texts and the images of a content that is a list of parts."""
    texts: list[str] = []
    images: list[object] = []
    for number, part in enumerate(content):
        match part:
            case {"type": "text" | "input_text" | "output_text", "text": str(text)}:
                texts.append(text)
            case {"type": "image_url", "image_url": {"url": str(url)}}:
                images.append(_image(url))
            case _:
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise InvalidSyscall(
                    f"part {number} of a message is {kind!r}",
                    field="body.messages",
                    remedy='use parts of type "text", and "image_url" with a data: URL',
                )
    return texts, images


def _image(url: str) -> Mapping[str, str]:
    head, comma, data = url.partition(",")
    media_type, _, encoding = head.removeprefix("data:").partition(";")
    if not url.startswith("data:") or not comma or encoding != "base64":
        raise InvalidSyscall(
            "an image is named by an address, and the kernel fetches nothing",
            field="body.messages",
            remedy="send its bytes: data:image/png;base64,...",
        )
    return {"media_type": media_type, "data": data}


def _call(call: object) -> object:
    """Return a call of a tool: `{"id", "type": "function", "function": {...}}` or our own."""
    match call:
        case {"id": call_id, "function": {"name": name, "arguments": arguments}}:
            return {"id": call_id, "name": name, "arguments": arguments}
        case _:
            return call


def tool(given: object) -> object:
    """Return a tool as the kernel has it: `{"type": "function", "function": {...}}` or our own."""
    if isinstance(given, Tool):
        return given
    match given:
        case {"type": "function", "function": Mapping() as function}:
            said = dict(function)
        case {"type": "function", "name": name, **rest}:  # of the Responses API
            said = {"name": name, **rest}
        case _:
            return given
    said.pop("strict", None)  # calls are always well-formed here
    return {name: value for name, value in said.items() if value is not None}


def tool_choice(given: object) -> object:
    """Return a choice: a word, or the name in `{"type": "function", "function": {"name": ...}}`."""
    match given:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
        case {"type": "function", "name": str(name)}:
            return name
        case _:
            return given
