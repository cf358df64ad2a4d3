"""What a request says although nobody has asked for it, as long as its endpoint takes that.

The kernel's defaults are said in every request: an endpoint may have others. Some models refuse to
be told (a temperature, a limit by its old name, that usage is wanted): what such a one refuses is
left out, or said by its other name, from then on. What a caller did ask for is his to hear of.
"""

import re
from collections.abc import Mapping

from aios_broker.contract.errors import UnsupportedOption

# What is said instead; None: nothing.
_INSTEAD: Mapping[str, str | None] = {
    "stream_options": None,
    "temperature": None,
    "max_tokens": "max_completion_tokens",
}


class Defaults:
    """The habits of one endpoint, as far as they are known."""

    def __init__(self) -> None:
        self.refused: frozenset[str] = frozenset()

    def said(self, content: Mapping[str, object], refused: frozenset[str]) -> dict[str, object]:
        """Return a request without what is refused and nobody has asked for."""
        unwanted = refused - _asked_for(content)
        names = {name: _INSTEAD[name] if name in unwanted else name for name in _INSTEAD}
        return {
            said: value
            for name, value in content.items()
            if (said := names.get(name, name)) is not None
        }

    def also_refused(
        self, refused: frozenset[str], refusal: UnsupportedOption, content: Mapping[str, object]
    ) -> frozenset[str] | None:
        """Return what to leave out after a refusal; None: it is of what was asked for."""
        found = {
            name
            for name in _INSTEAD
            if name in content and name not in refused and _names(refusal, name)
        }
        found -= _asked_for(content)
        return refused | found if found else None


def _asked_for(content: Mapping[str, object]) -> frozenset[str]:
    """Return what of a request its caller has said: 0 is what goes without saying."""
    return frozenset({"temperature"}) if content.get("temperature") else frozenset()


def _names(refusal: UnsupportedOption, option: str) -> bool:
    said = f"{refusal.field} {refusal.message}"
    return re.search(rf"\b{option}\b", said) is not None
