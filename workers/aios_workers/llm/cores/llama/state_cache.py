"""KV states of suspended generations, kept in the core's memory under a byte budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvState:
    """The KV state of some tokens, as the library exported it."""

    ids: tuple[int, ...]  # the tokens that it covers, from the start of the prompt
    data: bytes
    shared: bool = False  # it is on its way to the state store, too


class StateCache:
    """The least recently kept states go first when the budget is full."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._states: OrderedDict[str, KvState] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def keep(self, request_id: str, state: KvState) -> bool:
        """Keep a state in place of an older one; False if it is larger than the budget."""
        self.drop(request_id)
        if len(state.data) > self.budget_bytes:
            return False
        while self.used_bytes + len(state.data) > self.budget_bytes:
            _, oldest = self._states.popitem(last=False)
            self.used_bytes -= len(oldest.data)
        self._states[request_id] = state
        self.used_bytes += len(state.data)
        return True

    def take(self, request_id: str) -> KvState | None:
        """Remove and return the state of a request."""
        state = self._states.pop(request_id, None)
        if state is not None:
            self.used_bytes -= len(state.data)
        return state

    def drop(self, request_id: str) -> None:
        """Forget the state of a request, if there is one."""
        self.take(request_id)

    def newest_first(self) -> Iterator[tuple[str, KvState]]:
        """Yield what is kept, by request id."""
        yield from reversed(self._states.items())


def shared_prefix_tokens(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many first tokens are the same."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
