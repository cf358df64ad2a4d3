"""Values of JSON as Postgres keeps them, so that a number comes back as the kind that it was.

`jsonb` keeps a number's digits, not how it was written: 1e16 would come back as an integer.
"""

from decimal import Decimal

from msgspec import Raw, json
from psycopg.types.json import Jsonb

_WRITTEN_WITH_EXPONENT = 1e16  # from here on a float's text has no decimal point


def as_jsonb(value: object) -> Jsonb:
    """Return a value as a parameter of type `jsonb`."""
    return Jsonb(value, dumps=_text)


def _text(value: object) -> bytes:
    return json.encode(_kept(value))


def _kept(value: object) -> object:
    match value:
        case dict():
            return {key: _kept(each) for key, each in value.items()}
        case list() | tuple():
            return [_kept(each) for each in value]
        case float() if abs(value) >= _WRITTEN_WITH_EXPONENT:
            return Raw(f"{Decimal(repr(value)):f}.0".encode())
    return value
