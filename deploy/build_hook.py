"""Put the migrations into the wheel, as data of the broker.

An installed kernel migrates its database from `aios_broker/migrations`; a checkout (an editable
install included) from `migrations/` at its root, so that there is never a second copy.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class MigrationsInWheel(BuildHookInterface[Any]):
    """Adds `migrations/` to a standard wheel; leaves an editable one alone."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Extend the list of files that hatchling is about to pack."""
        if version == "standard":
            build_data["force_include"]["migrations"] = "aios_broker/migrations"
