"""The keys that tools use and never have: `tool-secrets.toml` in the state directory.

    [secrets.GITHUB]
    value = "ghp_..."                # or value_file = "/run/secrets/github"
    hosts = ["api.github.com"]       # where it may be sent, whatever a tool's rules say

A tool is told a placeholder. Where its rule has passed, and the host is one of the key's, the proxy
puts the key in its place: in headers and in the query, never in a body.
"""

import base64
import binascii
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Annotated, Self
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.names import Name
from aios_workers.modules.tool.egress.message import Head
from aios_workers.modules.tool.egress.rules import Origin, Refused, pattern_of

FILE_NAME = "tool-secrets.toml"
LEAST_BYTES = 8  # a shorter key would be found in what is no key
MOST_BYTES = 8 * 1024
_BASIC = "basic "


class Secret(Struct, frozen=True, forbid_unknown_fields=True):
    """One key, as the file describes it."""

    hosts: Annotated[list[str], Meta(min_length=1, max_length=64)]
    value: str | None = None
    value_file: str | None = None


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    secrets: dict[Name, Secret] = {}


@dataclass(frozen=True, slots=True)
class SecretFile:
    """The file, read anew whenever a key is needed: one that was changed holds at once."""

    path: Path

    def read(self) -> Mapping[str, Secret]:
        """Return all keys; a file that is not there has none.

        Raises:
            InvalidConfig: It is wrong, or others may read it. No key is in the message.
        """
        try:
            with self.path.open("rb") as file:
                if stat.S_IMODE(self.path.stat().st_mode) & 0o077:
                    raise _wrong("others than its owner may read it", "`chmod 600` it")
                found = msgspec.convert(tomllib.load(file), _File).secrets
        except FileNotFoundError:
            return {}
        except tomllib.TOMLDecodeError as error:
            raise _wrong("it is no TOML", "correct it") from error
        except (OSError, UnicodeDecodeError) as error:
            raise _wrong(f"it cannot be read: {type(error).__name__}", "correct it") from error
        except msgspec.ValidationError as error:
            raise _wrong(str(error), "correct it") from None
        for name, secret in found.items():
            _check(name, secret)
        return found

    def value(self, name: str) -> tuple[str, Secret]:
        """Return a key, and what is known of it.

        Raises:
            InvalidConfig: It is not there, or cannot be used.
        """
        secret = self.read().get(name)
        if secret is None:
            raise _wrong(
                "a tool uses it, and it is not there",
                f"write [secrets.{name}] into {self.path}",
                f".{name}",
            )
        text = secret.value
        if text is None:
            try:
                text = Path(str(secret.value_file)).expanduser().read_text("ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise _wrong(
                    f"cannot be read: {type(error).__name__}", "name a file", f".{name}.value_file"
                ) from error
        if not LEAST_BYTES <= len(text) <= MOST_BYTES or not _is_word(text):
            raise _wrong(
                f"is no word of {LEAST_BYTES} or more letters, digits and signs",
                "let it hold the key and nothing else",
                f".{name}",
            )
        return text, secret


class Placeholders:
    """What a sandbox is told instead of keys."""

    def __init__(self, file: SecretFile, told: Mapping[str, str]) -> None:
        self._file = file
        self.told = told  # by name

    @classmethod
    def of(cls, file: SecretFile, names: Iterable[str]) -> Self:
        """Return new ones for some keys.

        Raises:
            InvalidConfig: One of the keys is not there.
        """
        for name in names:
            file.value(name)
        return cls(file, {name: f"aios-key-{token_hex(16)}" for name in names})

    def replaced(self, head: Head, origin: Origin, allowed: Iterable[str]) -> tuple[Head, set[str]]:
        """Return a request with the keys in their places, and all texts that have a key in them.

        Raises:
            Refused: A placeholder is where its key may not go.
        """
        keys = {told: self._key(name, origin, allowed) for name, told in self._used(head).items()}
        if not keys:
            return head, set()
        known: set[str] = set()
        for key in keys.values():
            known |= {key, quote(key, safe="")}
        target = _put(head.target, {told: quote(key, safe="") for told, key in keys.items()})
        headers: list[tuple[str, str]] = []
        for name, value in head.headers:
            found = _put(value, keys)
            user = _basic(value)
            if name.lower() == "authorization" and user is not None:
                inner = base64.b64encode(_put(user, keys).encode()).decode()
                found = f"Basic {inner}"
                known.add(inner)
            headers.append((name, found))
        return Head(head.method, target, tuple(headers)), known

    def used(self, head: Head) -> set[str]:
        """Return the names of the keys whose placeholders a request has."""
        return set(self._used(head))

    def _used(self, head: Head) -> dict[str, str]:
        texts = [head.target, *(value for _, value in head.headers)]
        texts += [found for _, value in head.headers if (found := _basic(value)) is not None]
        return {
            name: told for name, told in self.told.items() if any(told in text for text in texts)
        }

    def _key(self, name: str, origin: Origin, allowed: Iterable[str]) -> str:
        if name not in allowed:
            raise Refused(f"the rule for {origin.authority} does not name the key {name}")
        try:
            key, secret = self._file.value(name)
        except InvalidConfig as error:
            raise Refused(f"the key {name} cannot be used: {error.message}", 502) from error
        if not any(pattern_of(host).names(origin) for host in secret.hosts):
            raise Refused(f"the key {name} is not for {origin.authority}")
        return key


class Scrubber:
    """Takes texts out of a stream of bytes: stars stand in their places."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = sorted((text.encode() for text in texts), key=len, reverse=True)
        self._held = b""

    @property
    def seeks(self) -> bool:
        """Whether there is anything to take out."""
        return bool(self._texts)

    def feed(self, data: bytes) -> bytes:
        """Return what can be told by now: what may be the beginning of a text waits."""
        data = self._held + data
        for text in self._texts:
            data = data.replace(text, b"*" * len(text))
        keep = max((_begun(data, text) for text in self._texts), default=0)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def rest(self) -> bytes:
        """Return what has waited; the stream has ended."""
        return self._held


def _begun(data: bytes, text: bytes) -> int:
    """Return how many of the last bytes may be the beginning of a text."""
    for size in range(min(len(text) - 1, len(data)), 0, -1):
        if data.endswith(text[:size]):
            return size
    return 0


def _put(text: str, keys: Mapping[str, str]) -> str:
    for told, key in keys.items():
        text = text.replace(told, key)
    return text


def _basic(value: str) -> str | None:
    """Return `user:password` of a header, where it has one."""
    if not value.lower().startswith(_BASIC):
        return None
    try:
        return base64.b64decode(value[len(_BASIC) :].strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _is_word(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _check(name: str, secret: Secret) -> None:
    if (secret.value is None) == (secret.value_file is None):
        raise _wrong("has no key, or two", "give `value` or `value_file`", f".{name}")
    for host in secret.hosts:
        try:
            pattern_of(host)
        except Refused as error:
            raise _wrong(str(error), "name hosts", f".{name}.hosts") from error


def _wrong(why: str, remedy: str, where: str = "") -> InvalidConfig:
    return InvalidConfig(why, field=f"{FILE_NAME}{where}", remedy=remedy)
