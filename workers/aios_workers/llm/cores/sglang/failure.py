"""What goes wrong with a server, before it becomes a `CoreError` at the core's border."""

from __future__ import annotations

from aios_broker.contract.errors import CoreError


class EngineFailure(Exception):
    """The server did not do its part. `sick`: it counts against the server's health."""

    def __init__(self, message: str, *, sick: bool = True, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.sick = sick
        self.remedy = remedy

    def to_core_error(self) -> CoreError:
        """Return it as the handler knows it."""
        return CoreError(self.message, remedy=self.remedy)
