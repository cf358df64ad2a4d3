"""The typed events of a response that is streamed: what comes after what. Pure.

The same chunks and the same reply give the same events with the same numbers: a stream can be told
anew from any of them.
"""

from collections.abc import Iterator, Mapping

import msgspec

from aios_broker.contract.llm import ToolCall
from aios_broker.contract.reply import ChatResult, Chunk, Part, Reply
from aios_kernel_api.gateway.items import Json
from aios_kernel_api.gateway.response_object import (
    Response,
    call_item,
    ended,
    logprob,
    message_item,
    reasoning_item,
    stem_of,
    text_part,
)
from aios_kernel_api.gateway.response_tools import Known

PIECE_CHARACTERS = 64  # of a call's arguments: they are known at once, and travel in pieces


class ResponseEvents:
    """Tells of one response, event by event."""

    def __init__(self, begun: Response, names: Mapping[str, Known], *, one_call: bool) -> None:
        self._begun = begun
        self._names = names
        self._one_call = one_call
        self._stem = stem_of(begun.id)
        self.number = 0
        self._open: Part | None = None  # what is being written
        self._texts: dict[Part, list[str]] = {"reasoning": [], "answer": []}
        self._places: dict[Part, int] = {}
        self._items = 0
        self.response = begun  # as it stands now

    def begin(self) -> Iterator[Json]:
        """Yield the first events."""
        yield self._event("response.created", response=self._begun.shown())
        self.response = msgspec.structs.replace(self._begun, status="in_progress")
        yield self._event("response.in_progress", response=self.response.shown())

    def hear(self, chunk: Chunk) -> Iterator[Json]:
        """Yield what a chunk brings."""
        if self._open != chunk.part:
            if chunk.part in self._places:  # after a hole in the stream: no item is written twice
                return
            yield from self._close()
            yield from self._begin_item(chunk.part)
        self._texts[chunk.part].append(chunk.text)
        yield self._of_part(chunk.part, "delta", delta=chunk.text, **_no_logprobs(chunk.part))

    def end(self, reply: Reply, *, now: int) -> Iterator[Json]:
        """Yield the last events."""
        result = reply.result
        self.response = ended(self.response, reply, self._names, one_call=self._one_call, now=now)
        if isinstance(result, ChatResult):
            yield from self._close(result)
            calls = result.tool_calls[:1] if self._one_call else result.tool_calls
            if not calls and "answer" not in self._places:
                yield from self._begin_item("answer")
                yield from self._close(result)
            for place, call in enumerate(calls):
                yield from self._call(place, call)
        status = self.response.status
        kind = "failed" if status == "cancelled" else status
        yield self._event(f"response.{kind}", response=self.response.shown())

    # The items.

    def _begin_item(self, part: Part) -> Iterator[Json]:
        self._open = part
        self._places[part] = self._items
        self._items += 1
        is_answer = part == "answer"
        item = (
            message_item(self._stem, None, "in_progress")
            if is_answer
            else reasoning_item(self._stem, None)
        )
        yield self._event("response.output_item.added", output_index=self._places[part], item=item)
        empty: Json = text_part("") if is_answer else {"type": "reasoning_text", "text": ""}
        yield self._of_content(part, "added", empty)

    def _close(self, result: ChatResult | None = None) -> Iterator[Json]:
        """End the item that is being written."""
        part, self._open = self._open, None
        if part is None:
            return
        text = "".join(self._texts[part])
        if part == "reasoning":
            item = reasoning_item(self._stem, text)
            yield self._of_part(part, "done", text=text)
            yield self._of_content(part, "done", {"type": "reasoning_text", "text": text})
        else:
            scores = result.logprobs if result is not None else ()
            cut = result is not None and result.finish_reason == "length"
            item = message_item(self._stem, text, "incomplete" if cut else "completed", scores)
            told = [logprob(each) for each in scores]
            yield self._of_part(part, "done", text=text, logprobs=told)
            yield self._of_content(part, "done", text_part(text, scores))
        yield self._event("response.output_item.done", output_index=self._places[part], item=item)

    def _call(self, place: int, call: ToolCall) -> Iterator[Json]:
        index = self._items
        self._items += 1
        whole = call_item(self._stem, place, call, self._names)
        field = "input" if whole["type"] == "custom_tool_call" else "arguments"
        kind = "custom_tool_call_input" if field == "input" else "function_call_arguments"
        begun = {**whole, field: "", "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=index, item=begun)
        at = {"item_id": whole["id"], "output_index": index}
        text = str(whole[field])
        for first in range(0, len(text), PIECE_CHARACTERS):
            piece = text[first : first + PIECE_CHARACTERS]
            yield self._event(f"response.{kind}.delta", **at, delta=piece)
        yield self._event(f"response.{kind}.done", **at, **{field: text})
        yield self._event("response.output_item.done", output_index=index, item=whole)

    # The events.

    def _of_part(self, part: Part, verb: str, **fields: object) -> Json:
        kind = "output_text" if part == "answer" else "reasoning_text"
        return self._event(f"response.{kind}.{verb}", **self._at(part), **fields)

    def _of_content(self, part: Part, verb: str, content: Json) -> Json:
        return self._event(f"response.content_part.{verb}", **self._at(part), part=content)

    def _at(self, part: Part) -> Json:
        prefix = "msg" if part == "answer" else "rs"
        return {
            "item_id": f"{prefix}_{self._stem}",
            "output_index": self._places[part],
            "content_index": 0,
        }

    def _event(self, kind: str, **fields: object) -> Json:
        number = self.number
        self.number += 1
        return {"type": kind, "sequence_number": number, **fields}


def _no_logprobs(part: Part) -> Json:
    """Return what a piece of text has for log-probabilities: they come with the end."""
    return {"logprobs": []} if part == "answer" else {}
