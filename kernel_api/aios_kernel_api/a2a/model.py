"""What A2A 1.0 says on the wire, as far as this door speaks it: the JSON of its `a2a.proto`.

The names are the protocol's, in camelCase. A field that is not known is ignored, as the protocol
wants it; what is known and not kept is refused by whoever reads it.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

PROTOCOL_VERSION = "1.0"

TaskState = Literal[
    "TASK_STATE_SUBMITTED",
    "TASK_STATE_WORKING",
    "TASK_STATE_INPUT_REQUIRED",
    "TASK_STATE_COMPLETED",
    "TASK_STATE_FAILED",
    "TASK_STATE_CANCELED",
    "TASK_STATE_REJECTED",
]
FINAL: frozenset[TaskState] = frozenset(
    ("TASK_STATE_COMPLETED", "TASK_STATE_FAILED", "TASK_STATE_CANCELED", "TASK_STATE_REJECTED")
)
# The protocol has more of them; no task of this door is ever in one of these.
AskedState = TaskState | Literal["TASK_STATE_UNSPECIFIED", "TASK_STATE_AUTH_REQUIRED"]
Role = Literal["ROLE_USER", "ROLE_AGENT"]
HistoryLength = Annotated[int, Meta(ge=0)]
TEXT = "text/plain"
JSON = "application/json"


class Wire(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A message of the protocol."""


class Part(Wire, frozen=True):
    """A piece of content: one of `text`, `raw`, `url` and `data`."""

    text: str | None = None
    raw: str | None = None  # base64
    url: str | None = None
    data: object = None  # any JSON
    media_type: str = ""


class Message(Wire, frozen=True):
    """One turn of a client, or of an agent."""

    message_id: Annotated[str, Meta(min_length=1, max_length=200)]
    role: Role
    parts: Annotated[Sequence[Part], Meta(min_length=1, max_length=1_000)]
    context_id: str = ""
    task_id: str = ""


class TaskStatus(Wire, frozen=True):
    """Where a task stands."""

    state: TaskState
    message: Message | None = None
    timestamp: str = ""  # ISO 8601; empty: it is not known since when


class Artifact(Wire, frozen=True):
    """Something that a task has made."""

    artifact_id: str
    parts: Sequence[Part]


class Task(Wire, frozen=True):
    """A syscall, as the protocol has it."""

    id: str
    context_id: str
    status: TaskStatus
    artifacts: Sequence[Artifact] = ()


class StatusUpdate(Wire, frozen=True):
    """A task stands somewhere else now."""

    task_id: str
    context_id: str
    status: TaskStatus


class ArtifactUpdate(Wire, frozen=True):
    """A task has made something, or more of it."""

    task_id: str
    context_id: str
    artifact: Artifact
    append: bool = False
    last_chunk: bool = False


class StreamResponse(Wire, frozen=True):
    """What is told of a task: one of these. Without a stream it is the task."""

    task: Task | None = None
    status_update: StatusUpdate | None = None
    artifact_update: ArtifactUpdate | None = None


# What is asked.


class SendConfiguration(Wire, frozen=True):
    """How a message is to be answered."""

    accepted_output_modes: Sequence[str] = ()
    task_push_notification_config: object = None
    history_length: HistoryLength | None = None
    return_immediately: bool = False


class SendParams(Wire, frozen=True):
    """A message to an agent."""

    message: Message
    configuration: SendConfiguration = SendConfiguration()


class TaskParams(Wire, frozen=True):
    """Which task."""

    id: str
    history_length: HistoryLength | None = None


class ListParams(Wire, frozen=True):
    """Which tasks."""

    context_id: str = ""
    status: AskedState = "TASK_STATE_UNSPECIFIED"
    page_size: Annotated[int, Meta(ge=1, le=100)] = 50
    page_token: Annotated[str, Meta(max_length=100)] = ""
    history_length: HistoryLength | None = None
    status_timestamp_after: str | None = None
    include_artifacts: bool = False


class NoParams(Wire, frozen=True):
    """Nothing is asked but the thing itself."""


class TaskPage(Struct, frozen=True, rename="camel"):
    """Some tasks; `next_page_token` is empty on the last page."""

    tasks: Sequence[Task]
    next_page_token: str
    page_size: int
    total_size: int


# Who an agent is.


class AgentInterface(Wire, frozen=True):
    """Where an agent is reached."""

    url: str
    protocol_binding: str
    protocol_version: str


class AgentCapabilities(Struct, frozen=True, rename="camel"):
    """What an agent can do of what the protocol leaves open."""

    streaming: bool
    push_notifications: bool
    extended_agent_card: bool


class AgentSkill(Wire, frozen=True):
    """Something that an agent does."""

    id: str
    name: str
    description: str
    tags: Sequence[str]
    examples: Sequence[str] = ()
    input_modes: Sequence[str] = ()
    output_modes: Sequence[str] = ()


class AgentCard(Wire, frozen=True):
    """Who an agent is, and how it is reached."""

    name: str
    description: str
    supported_interfaces: Sequence[AgentInterface]
    version: str
    capabilities: AgentCapabilities
    default_input_modes: Sequence[str]
    default_output_modes: Sequence[str]
    skills: Sequence[AgentSkill]
    documentation_url: str = ""
    security_schemes: dict[str, dict[str, dict[str, str]]] = {}
    security_requirements: Sequence[dict[str, dict[str, dict[str, list[str]]]]] = ()
