"""Bounded work for many agents: a few at a time, in their turns.

    said = await work.run(Holder("acme", "scribe"), request)

Whoever asks for much waits for itself: each tenant has its share of what runs at a time, and none
has all of it.
"""

from collections.abc import Callable

from aios_broker.places import Holder, Places, Shares
from aios_broker.process.bounded import Bounds, ForkServer


class BoundedWork:
    """One program's work, in as many servers as there are places."""

    def __init__(self, program: str, bounds: Bounds, shares: Shares) -> None:
        self._places = Places(shares)
        self._idle = [ForkServer(program, bounds) for _ in range(shares.places)]

    @property
    def waiting(self) -> int:
        """How many wait for a server."""
        return self._places.waiting

    async def run(
        self, holder: Holder, request: bytes, begin: Callable[[], None] = lambda: None
    ) -> bytes:
        """Return what the work says to a request; `begin` is called when its turn has come.

        Raises:
            OutOfBounds: It needed more than it may use; `OutOfTime`: by the clock.
            ModuleError: It could not be run, or it broke.
        """
        async with self._places.one(holder):
            begin()
            server = self._idle.pop()  # the last that was used: it has been started
            try:
                return await server.ask(request)
            finally:
                # One that was ended goes where it is asked last.
                self._idle.insert(0 if server.pid is None else len(self._idle), server)
