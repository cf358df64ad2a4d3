"""An answer on its way to who reads along: its reasoning, and of its text what is no call."""

from aios_broker.queues.records import Lease
from aios_workers.llm.answers import AnswerText, Plan
from aios_workers.llm.chat.calls import CallFormat
from aios_workers.llm.tools import Toolbox
from aios_workers.runtime.kernel import StreamSender


class AnswerStream:
    """The first answer of a chat, as it is streamed."""

    def __init__(self, sender: StreamSender, lease: Lease, plan: Plan) -> None:
        characters, of_reasoning = plan.emitted
        self._answer = sender.open(lease, plan.syscall_id, characters)
        self._thoughts = sender.open(lease, plan.syscall_id, of_reasoning, "reasoning")
        self._filter = CallFilter(plan.toolbox) if plan.toolbox is not None else None

    @property
    def has_begun(self) -> bool:
        """Whether somebody may have read of the answer, in this slice or an earlier one."""
        return self._answer.written > 0 or self._answer.delivered > 0

    @property
    def delivered(self) -> tuple[int, int]:
        """How much of the answer, and of its reasoning, has reached the client's list."""
        return self._answer.delivered, self._thoughts.delivered

    def write(self, text: AnswerText) -> None:
        """Stream what is certain of it."""
        self._thoughts.write(text.take_reasoning())
        ready = text.take_ready()
        self._answer.write(ready if self._filter is None else self._filter.passed(ready))

    def complete(self, text: AnswerText, answer: str) -> None:
        """Stream what was kept back; `answer`: the whole of it, without its calls."""
        self._thoughts.write(text.take_reasoning())
        self._answer.write(answer[self._answer.written :])

    async def flush(self) -> None:
        """Return when all has left, or failed once."""
        await self._thoughts.flush()
        await self._answer.flush()


class CallFilter:
    """Keeps back, while an answer is streamed, what may turn out to be a tool call.

    Passes text up to the first appearance of the format's marker; from there on nothing. Where
    the whole answer is a call, or may be one by how it begins, everything is kept back.
    """

    def __init__(self, toolbox: Toolbox) -> None:
        marker, may_be_bare = toolbox.call_format.marker, toolbox.may_be_bare
        self._text = AnswerText((marker,)) if marker else AnswerText()
        marked = marker and not may_be_bare
        self._is_call: bool | None = True if toolbox.forced else False if marked else None
        self._begun = ""
        self._call_format: CallFormat = toolbox.call_format

    def passed(self, text: str) -> str:
        """Return what may be streamed now that `text` has come."""
        if self._is_call is None:
            self._begun += text
            text = self._begun
            self._is_call = self._call_format.may_be_call(text)
        if self._is_call is not False:
            return ""
        self._text.feed(text.encode("utf-8", "surrogatepass"))
        return self._text.take_ready()
