"""Agent cards: who answers here, how it is reached, and what it does.

The card at the well-known place is for whoever comes and tells of no agent; an agent's own is shown
to its token.
"""

import hashlib

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from aios_kernel_api.a2a.model import (
    JSON,
    PROTOCOL_VERSION,
    TEXT,
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
)
from aios_kernel_api.byte_ranges import names
from aios_kernel_api.kernel import kernel_of
from aios_kernel_api.openapi import release

ENDPOINT = "/a2a"
FRESH_S = 300  # so long a card may be kept
SKILLS = (
    AgentSkill(
        "chat",
        "Answer in a conversation",
        "Text is a turn of a chat with the kernel's default core. Messages of one contextId are "
        "one conversation, which the kernel keeps for 7 days.",
        ("llm", "chat"),
        ("Name three rivers of France.",),
        (TEXT,),
        (TEXT, JSON),
    ),
    AgentSkill(
        "syscall",
        "Do what the agent may do in the kernel",
        "One data part is a syscall with its arguments: memory, files, access, generations with "
        "options. What destroys something asks for input first: a person decides.",
        ("memory", "storage", "access", "llm"),
        (
            '{"type": "memory.add", "content": "We meet on Mondays."}',
            '{"type": "storage.delete", "path": "plan.md"}',
        ),
        (JSON,),
        (JSON,),
    ),
)


def public_card(request: Request) -> AgentCard:
    """Return the card of whichever agent a token is of."""
    return _card(
        request,
        "AIOS kernel",
        "A kernel of agents: the bearer token says which of them answers. Its own card is the "
        "extended one.",
        ENDPOINT,
    )


def agent_card(request: Request, agent: str) -> AgentCard:
    """Return the card of an agent."""
    return _card(
        request,
        agent,
        f"The agent {agent} of a kernel: it answers and acts with that agent's rights, memory, "
        "files and quotas.",
        f"{ENDPOINT}/agents/{agent}",
    )


def card_response(request: Request, card: AgentCard, *, is_public: bool) -> Response:
    """Return a card as it is sent; to who has it already, that it is the same."""
    body = msgspec.json.encode(card)
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {
        "cache-control": f"{'public' if is_public else 'private'}, max-age={FRESH_S}",
        "etag": tag,
        "vary": "host" if is_public else "host, authorization",
    }
    if names(request.headers.get("if-none-match", ""), tag):
        return Response(None, 304, headers)
    return Response(body, 200, headers, JSON)


def _card(request: Request, name: str, description: str, path: str) -> AgentCard:
    base = (kernel_of(request).config.api_public_url or str(request.base_url)).rstrip("/")
    return AgentCard(
        name=name,
        description=description,
        supported_interfaces=[AgentInterface(base + path, "JSONRPC", PROTOCOL_VERSION)],
        version=release(),
        capabilities=AgentCapabilities(
            streaming=True, push_notifications=False, extended_agent_card=True
        ),
        default_input_modes=[TEXT, JSON],
        default_output_modes=[TEXT, JSON],
        skills=SKILLS,
        documentation_url=f"{base}/reference",
        security_schemes={"token": {"httpAuthSecurityScheme": {"scheme": "Bearer"}}},
        security_requirements=[{"schemes": {"token": {"list": []}}}],
    )
