"""A core's entry, as it stands now: what of it may change while the core runs, and is obeyed then.

Aliases, default, fallback, price and limits are the card's; what else an entry says is the core's,
and whoever started this worker starts it anew where that has changed.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aios_broker.catalogue import file_stamp
from aios_broker.contract.cores import CoreCard, CoreSettings, Price, RateLimits, kind_of
from aios_broker.contract.errors import InvalidConfig
from aios_workers.llm.core import Capabilities, CoreInfo

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


class CoreEntry:
    """What the fleet is told of a started core, and what its use costs."""

    def __init__(self, info: CoreInfo, settings: CoreSettings, source: str = "") -> None:
        self._info = info
        self._settings = settings
        self.price: Price | None = settings.price  # what its use costs; None: nothing
        self._source = source

    def change(self, settings: CoreSettings) -> bool:
        """Take the settings as they are now; return whether the card is another one by that."""
        before = self.card
        self._settings, self.price = settings, settings.price
        return self.card != before

    def limits(self) -> RateLimits:
        """Return how much may be sent to the account behind it."""
        return self._settings.limits

    @property
    def card(self) -> CoreCard:
        """What the fleet is told."""
        info, settings = self._info, self._settings
        return CoreCard(
            name=info.name,
            model=info.model,
            kind=kind_of(settings),
            snapshot_model=info.snapshot_model,
            aliases=settings.aliases,
            default=settings.default,
            fallback=settings.fallback,
            slots=info.slots,
            context_tokens=info.context_tokens,
            preemptible=info.capabilities.preemptible,
            generates=info.capabilities.generates,
            keeps_kv=info.capabilities.preemptible,
            limits=settings.limits,
            currency="" if settings.price is None else settings.price.currency,
            report={**_usual_report(info.capabilities), **info.report},
            source=self._source,
        )


def _usual_report(capabilities: Capabilities) -> dict[str, str]:
    """Say what a core's capabilities say; one that knows more says it in its own words."""
    if not capabilities.generates:
        return {"makes": "embeddings alone"}
    forms = "JSON by a schema, patterns, grammars" if capabilities.constraints else "none"
    if capabilities.call_format is not None:
        tools = "shown and called as the model was trained to"
    elif capabilities.constraints:
        tools = "shown by the kernel, calls held to a grammar"
    else:
        tools = "none"
    if not capabilities.preemptible:
        resume = "never suspended: it runs to its end"
    elif capabilities.exact_resume:
        resume = "exact: a suspended generation goes on id for id"
    else:
        resume = "same context: a suspended generation sees exactly the ids so far"
    return {"tools": tools, "forms": forms, "resume": resume}


@asynccontextmanager
async def followed(
    entry: CoreEntry,
    path: Path,
    read: Callable[[], CoreSettings],
    show: Callable[[CoreCard], None],
) -> AsyncIterator[None]:
    """For the length of a block, obey what the file says of a core; an entry that is wrong stays.

    Args:
        entry: The core's.
        path: Of the file.
        read: Reads its settings from there.
        show: Is given a card that has changed.
    """

    async def follow() -> None:
        taken = seen = file_stamp(path)
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            before, seen = seen, file_stamp(path)
            if seen == taken or seen != before:  # who writes it may be in the middle
                continue
            taken = seen
            with contextlib.suppress(InvalidConfig):  # who follows the whole file says so
                if entry.change(read()):
                    logger.info("core %s: its card has changed", entry.card.name)
                    show(entry.card)

    following = asyncio.create_task(follow())
    try:
        yield
    finally:
        following.cancel()
