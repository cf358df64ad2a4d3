"""A model's folder: the files beside its weights that say how to talk to it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from aios_broker.contract.errors import InvalidConfig

TOKENIZER = "tokenizer.json"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class ModelFolder:
    """Reads a folder in the layout of Hugging Face. Nothing in it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tokenizer_config = self._json("tokenizer_config.json")
        self._config = self._json("config.json")
        self._generation_config = self._json("generation_config.json")

    def has_config(self) -> bool:
        """Whether the model's configuration is there."""
        return bool(self._config)

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer."""
        try:
            return Tokenizer.from_file(str(self.path / TOKENIZER))
        except Exception as error:  # the library raises plain Exception
            raise self._unfit(f"{TOKENIZER} cannot be read: {error}") from error

    def chat_template(self) -> str:
        """Return the chat template: a file of its own, or part of the tokenizer's configuration."""
        file = self.path / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        found = self._tokenizer_config.get("chat_template")
        if isinstance(found, list):  # several, by name
            named = {each.get("name"): each.get("template") for each in found}
            found = named.get("default")
        if not isinstance(found, str):
            raise self._unfit("there is no chat template: this is no model for conversations")
        return found

    def special_tokens(self) -> dict[str, str]:
        """Return the special tokens that templates name."""
        values = {name: _content(self._tokenizer_config.get(name)) for name in _SPECIAL}
        return {name: value for name, value in values.items() if value is not None}

    def vocabulary_size(self) -> int | None:
        """Return how many ids the model's output has; more than the tokenizer's, often."""
        for config in (self._config, self._config.get("text_config") or {}):
            size = config.get("vocab_size")
            if isinstance(size, int) and size > 0:
                return size
        return None

    def end_ids(self, id_of: Callable[[str], int | None]) -> frozenset[int]:
        """Return the tokens that end a generation, from every file that names some."""
        ends: set[int] = set()
        configs = (self._config, self._config.get("text_config") or {}, self._generation_config)
        for config in configs:
            found = config.get("eos_token_id")
            ends.update(found if isinstance(found, list) else [found] if found is not None else [])
        text = _content(self._tokenizer_config.get("eos_token"))
        token = id_of(text) if text is not None else None
        if token is not None:
            ends.add(token)
        if not ends:
            raise self._unfit("no file names a token that ends an answer")
        return frozenset(ends)

    def _json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        if not file.is_file():
            return {}
        try:
            return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise self._unfit(f"{name} cannot be read: {error}") from error

    def _unfit(self, why: str) -> InvalidConfig:
        return InvalidConfig(
            f"{self.path}: {why}",
            field="AIOS_SGLANG_TOKENIZER",
            remedy="name a folder with tokenizer.json and the model's configuration",
        )


def _content(token: object) -> str | None:
    """Return a special token's text: it stands as a string, or in an object with options."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
