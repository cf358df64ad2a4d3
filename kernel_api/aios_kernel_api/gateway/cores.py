"""Which core a model's name leads to, as the kernel has its cores now."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aios_broker.contract.cores import CoreCard
from aios_broker.queues.control import Control
from aios_broker.queues.records import CoreView
from aios_kernel_api.kernel import Kernel

FRESH_S = 1.0  # so long what was read of the cores is believed


@dataclass(frozen=True, slots=True)
class Named:
    """What a model's name leads to."""

    core: str | None  # what the syscall names; None: the kernel's default
    shown: str  # who is expected to answer


class Cores:
    """The cores of a kernel, read when somebody asks, once for all who ask at the same time."""

    def __init__(self, kernel: Kernel, default: str | None, now_s: Callable[[], float]) -> None:
        self._control: Control = kernel.control
        self._default = default
        self._now_s = now_s
        self._views: tuple[CoreView, ...] = ()
        self._read_at_s = float("-inf")
        self._reading = asyncio.Lock()

    async def views(self) -> tuple[CoreView, ...]:
        """Return the cores that are known, with those whose workers are gone."""
        async with self._reading:
            if self._now_s() - self._read_at_s > FRESH_S:
                self._views = tuple(await self._control.cores())
                self._read_at_s = self._now_s()
        return self._views

    async def named(self, model: str | None, *, embeds: bool = False) -> Named:
        """Return where a model's name leads; one that is nobody's leads to the default.

        `embeds`: the default is a core that was made for it, where there is one.
        """
        cards = [view.card for view in await self.views()]
        for name in (model, self._default):
            if name and (found := first_of(cards, name)) is not None:
                return Named(name, found.name)
        made = [card for card in cards if not card.generates] if embeds else []
        if made:
            return Named(made[0].name, made[0].name)
        default = next((c for c in cards if c.default), None)
        first = default or next((c for c in cards if c.generates), None)
        return Named(None, first.name if first is not None else (model or ""))


def first_of(cards: Iterable[CoreCard], name: str) -> CoreCard | None:
    """Return the core that a name leads to: its own name, an alias, or its model, in this order."""
    known = list(cards)
    for leads in (_by_name, _by_alias, _by_model):
        for card in known:
            if leads(card, name):
                return card
    return None


def _by_name(card: CoreCard, name: str) -> bool:
    return card.name == name


def _by_alias(card: CoreCard, name: str) -> bool:
    return name in card.aliases


def _by_model(card: CoreCard, name: str) -> bool:
    return card.model == name
