"""What the demo's agents ask: stories first, then lists, then short questions.

Fixed prompts, fixed seeds, a part greedy and a part sampled: every run asks for the same ids.
Eight agents ask for about 1,050 output tokens in all.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

from aios_broker.contract.llm import LlmChat, Message
from aios_broker.contract.syscall import Syscall, check_syscall, new_id

Role = Literal["story", "list", "question"]

ARRIVAL_GAP_S = 0.05  # agents come one after another, the long ones first
FIRST_SEED = 1000
MAX_AGENTS = 200


@dataclass(frozen=True, slots=True)
class Ask:
    """One generation. `temperature` 0: greedy, the seed is ignored."""

    role: Role
    prompt: str
    max_tokens: int
    temperature: float
    seed: int

    @property
    def is_short(self) -> bool:
        """Whether its wait counts among those of the short requests."""
        return self.role == "question"


@dataclass(frozen=True, slots=True)
class DemoAgent:
    """One agent: when it comes, and what it asks, all at once."""

    role: Role
    number: int  # among those of its role, from 1
    arrival_s: float
    asks: tuple[Ask, ...]

    @property
    def name(self) -> str:
        """The agent's name."""
        return f"{self.role}-{self.number}"


STORIES = (
    ("Write a long story about a lighthouse keeper who finds a map in a bottle.", 200, 0.0),
    ("Tell a long bedtime story about a fox who wants to learn to read.", 180, 0.8),
    ("Write a long story about two friends who build a boat and sail away.", 160, 0.7),
)
LISTS = (
    ("List twelve fruits and describe each of them in one sentence.", 80, 0.0),
    ("List fifteen things to pack for a week in the mountains, and why.", 80, 0.6),
    ("List ten vegetables and say how to cook each of them.", 80, 0.0),
    ("List ten countries of Europe with their capitals, and say what each is known for.", 80, 0.6),
)
QUESTIONS = (
    ("Which city is the capital of France?", 16, 0.0),
    ("Why is the sky blue? Answer in one sentence.", 24, 0.0),
    ("Name three colours.", 20, 0.7),
    ("Is a whale a fish? Answer in one sentence.", 20, 0.0),
    ("How many days are in a week?", 16, 0.0),
    ("Say hello in French.", 12, 0.7),
    ("What is the opposite of hot?", 12, 0.0),
    ("Who wrote Hamlet?", 24, 0.0),
    ("What do bees make?", 16, 0.5),
)

_Prompts = tuple[tuple[str, int, float], ...]
# What the agents of a role ask in turn, and how much of it each asks at once.
_ROLES: tuple[tuple[Role, _Prompts, int], ...] = (
    ("story", STORIES, 1),
    ("list", LISTS, 2),
    ("question", QUESTIONS, 3),
)


def demo_agents(count: int) -> list[DemoAgent]:
    """Return `count` agents, the long ones first: of eight three, two and three of each role.

    With few of them stories and questions come first.
    """
    stories = max(1, round(count * 3 / 8))
    lists = round(count * 2 / 8) if count > 2 else 0
    numbers = (stories, lists, count - stories - lists)
    agents: list[DemoAgent] = []
    seeds = itertools.count(FIRST_SEED)
    for (role, prompts, asks_each), agents_of_role in zip(_ROLES, numbers, strict=True):
        asked = (Ask(role, *prompt, next(seeds)) for prompt in itertools.cycle(prompts))
        for number in range(1, agents_of_role + 1):
            asks = tuple(itertools.islice(asked, asks_each))
            agents.append(DemoAgent(role, number, len(agents) * ARRIVAL_GAP_S, asks))
    return agents


def syscall_of(agent: DemoAgent, ask: Ask, *, program: str) -> Syscall:
    """Return the syscall of one ask, with a fresh id; its result carries the token ids."""
    return check_syscall(
        Syscall(
            id=new_id(),
            agent=agent.name,
            program=program,
            body=LlmChat(
                messages=(Message("user", ask.prompt),),
                max_tokens=ask.max_tokens,
                temperature=ask.temperature,
                seed=ask.seed,
                stream=True,
                return_ids=True,
            ),
        )
    )
