"""A model's tokenizer in the worker's process: conversations to ids, ids to exact bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
from tokenizers import Tokenizer

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.llm import Message, Tool
from aios_workers.llm.chat.markers import Markers
from aios_workers.llm.chat.prompt import PromptWriter, Speech
from aios_workers.llm.chat.reasoning import ReasoningTags
from aios_workers.llm.chat.template import ChatTemplate
from aios_workers.llm.constraint import Compiler
from aios_workers.llm.cores import base_core
from aios_workers.llm.cores.sglang.model_folder import ModelFolder
from aios_workers.llm.cores.sglang.settings import BYTES

METASPACE = "\u2581"  # how SentencePiece writes a space
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary(base_core.Vocabulary, Protocol):
    """What this core needs to know beside: how the model speaks, and how forms are held."""

    speech: Speech
    reasoning: ReasoningTags | None
    turn_ends: frozenset[int]  # that end an answer, and no configuration names them

    def compiler(self) -> Compiler:
        """Return a compiler of constraints over these tokens; takes a moment, in any thread."""
        ...


class FolderVocabulary:
    """The vocabulary of a model folder: tokenizer.json, configuration and chat template."""

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder
        self._tokenizer: Tokenizer = folder.tokenizer()
        source = folder.chat_template()
        self.speech = Speech.of(source)
        self._end_ids = folder.end_ids(self._tokenizer.token_to_id)
        self._pieces = _pieces(self._tokenizer, self._is_shown)
        self.size = folder.vocabulary_size() or len(self._pieces)
        self.longest_piece_bytes = max(map(len, self._pieces.values()))
        special = {
            added.content: token
            for token, added in self._tokenizer.get_added_tokens_decoder().items()
            if added.special
        }
        template = ChatTemplate(
            source,
            folder.special_tokens(),
            field="AIOS_SGLANG_TOKENIZER",
            subject=str(folder.path),
        )
        self._prompts = PromptWriter(template, Markers(special), self._encode, self._plain)
        self.reasoning = self.speech.thoughts(self._encode)
        self.turn_ends = self._prompts.turn_ends - self._end_ids
        self._end_ids |= self.turn_ends

    def render(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[int, ...]:
        """Return the ids of a conversation up to the start of the answer.

        Only the template's own markers become special tokens: a message that contains one
        contains harmless characters.
        """
        return self._prompts.ids(messages, tools)

    def close(self) -> None:
        """End what renders."""
        self._prompts.close()

    def decode(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of tokens; those without a text have none.

        Control tokens are such, but for the marks of the family's calls and reasoning.
        """
        return b"".join(self._pieces.get(token, b"") for token in ids)

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return token in self._end_ids

    def compiler(self) -> Compiler:
        """Return a compiler of constraints over these tokens; control tokens are in no text."""
        tokenizer = self._folder.tokenizer()  # of its own: its settings are not the prompts'
        tokenizer.encode_special_tokens = True

        def tokenize(data: bytes) -> list[int]:
            text = data.decode("utf-8", "replace")
            return list(tokenizer.encode(text, add_special_tokens=False).ids)

        pieces = [self._pieces.get(token, b"") for token in range(self.size)]
        return Compiler(pieces, [end for end in self._end_ids if end < self.size], tokenize)

    def _is_shown(self, token: int, text: str) -> bool:
        return token not in self._end_ids and self.speech.is_mark(text)

    def _encode(self, text: str) -> Sequence[int]:
        # A batch, even of one, is read without Python's lock: the worker's loop goes on meanwhile.
        [encoded] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids: Sequence[int] = encoded.ids
        return ids

    def _plain(self, text: str) -> list[int]:
        self._tokenizer.encode_special_tokens = True  # as the characters that they are
        try:
            return list(self._encode(text))
        finally:
            self._tokenizer.encode_special_tokens = False


class ByteVocabulary:
    """For models without a tokenizer: ids 3 to 258 are the 256 bytes; a plain template."""

    FIRST = 3
    START, END = 0, 1
    longest_piece_bytes = 1
    speech = Speech(None, None)
    reasoning: ReasoningTags | None = None
    turn_ends: frozenset[int] = frozenset()

    def __init__(self, size: int | None = None, end_ids: frozenset[int] | None = None) -> None:
        self.size = size or self.FIRST + 256
        self._end_ids = end_ids or frozenset({self.END})

    @classmethod
    def of(cls, server_path: str | None) -> ByteVocabulary:
        """Return the one for a model whose folder may say how many ids there are."""
        folder = ModelFolder(Path(server_path)) if server_path else None
        if folder is None or not folder.has_config():
            return cls()
        return cls(folder.vocabulary_size(), folder.end_ids(lambda _: None))

    def render(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[int, ...]:
        """Return a start token and the bytes of `role: content` lines."""
        del tools
        lines = "".join(f"{message.role}: {message.content}\n" for message in messages)
        return self.ids(f"{lines}assistant:")

    def ids(self, text: str) -> tuple[int, ...]:
        """Return a start token and the bytes of a text."""
        data = text.encode("utf-8", "replace")
        return (self.START, *(byte + self.FIRST for byte in data))

    def decode(self, ids: Sequence[int]) -> bytes:
        """Return the bytes; other ids have none."""
        return bytes(token - self.FIRST for token in ids if 0 <= token - self.FIRST < 256)

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return token in self._end_ids

    def compiler(self) -> Compiler:
        """Return a compiler of constraints over these tokens."""
        pieces = [self.decode((token,)) for token in range(self.size)]
        return Compiler(pieces, self._end_ids, lambda data: [byte + self.FIRST for byte in data])


class TextReader(Protocol):
    """Turns a text into the ids that an embedding model wants."""

    size: int  # ids are below it

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text, with what the model expects around it."""
        ...


class FolderTextReader:
    """By the tokenizer of a model folder; it needs no chat template."""

    def __init__(self, folder: ModelFolder) -> None:
        self._tokenizer: Tokenizer = folder.tokenizer()
        self._tokenizer.encode_special_tokens = True  # what stands in a text is text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size = folder.vocabulary_size() or self._tokenizer.get_vocab_size()

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text between those that the tokenizer puts around each."""
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return tuple(self._tokenizer.encode(clean).ids)


def load_vocabulary(setting: str | None, server_path: str | None) -> Vocabulary:
    """Return what the setting names: a folder, `bytes`, or where the server has its tokenizer.

    Raises:
        InvalidConfig: There is none, or it is of a kind that is not read.
    """
    if setting == BYTES:
        return ByteVocabulary.of(server_path)
    return FolderVocabulary(model_folder(setting, server_path))


def load_text_reader(setting: str | None, server_path: str | None) -> TextReader:
    """Return what the setting names, as `load_vocabulary` does.

    Raises:
        InvalidConfig: There is none.
    """
    if setting == BYTES:
        return ByteVocabulary.of(server_path)
    return FolderTextReader(model_folder(setting, server_path))


def model_folder(setting: str | None, server_path: str | None) -> ModelFolder:
    """Return the folder that the setting names, or the server's own.

    Raises:
        InvalidConfig: It is not on this machine.
    """
    path = Path(setting or server_path or "")
    if not path.is_dir():
        raise InvalidConfig(
            f"there is no folder {str(path)!r} with the model's tokenizer",
            field="AIOS_SGLANG_TOKENIZER",
            remedy="name a folder with tokenizer.json and the model's configuration",
        )
    return ModelFolder(path)


def _pieces(tokenizer: Tokenizer, is_shown: Callable[[int, str], bool]) -> dict[int, bytes]:
    """Return the bytes of every token; special ones have none unless they are shown."""
    of_piece = _piece_reader(tokenizer)
    pieces = {token: of_piece(piece) for piece, token in tokenizer.get_vocab().items()}
    for token, added in tokenizer.get_added_tokens_decoder().items():
        pieces[token] = (
            b"" if added.special and not is_shown(token, added.content) else added.content.encode()
        )
    return pieces


def _piece_reader(tokenizer: Tokenizer) -> Callable[[str], bytes]:
    """Return how this tokenizer writes bytes: byte-level, or pieces with bytes to fall back on.

    Raises:
        InvalidConfig: Neither; a token's bytes would depend on its neighbours.
    """
    decoder = msgspec.json.decode(tokenizer.to_str()).get("decoder") or {}
    kinds = {each["type"] for each in (decoder, *decoder.get("decoders", ()))}
    if "ByteLevel" in kinds:
        byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
        return lambda piece: _byte_level(piece, byte_of)
    if kinds & {"ByteFallback", "Metaspace"}:
        return _with_fallback
    raise InvalidConfig(
        f"the model's tokenizer has a decoder that is not read: {decoder.get('type')}",
        field="AIOS_SGLANG_TOKENIZER",
        remedy="use a model with a byte-level or SentencePiece tokenizer",
    )


def _byte_level(piece: str, byte_of: dict[str, int]) -> bytes:
    if any(character not in byte_of for character in piece):
        return piece.encode()
    return bytes(byte_of[character] for character in piece)


def _with_fallback(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte.group(1), 16)]) if byte else piece.replace(METASPACE, " ").encode()


def _byte_characters() -> list[str]:
    """Return the characters that stand for the bytes 0 to 255 in byte-level vocabularies.

    Printable Latin-1 characters stand for themselves, the others for those from U+0100 on
    (Radford et al. 2019).
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
