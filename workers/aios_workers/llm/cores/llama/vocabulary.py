"""The model's tokenizer and chat template, loaded without its weights.

A worker renders prompts and decodes answers in its own process; the weights are in another.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.llm import Message, Tool
from aios_workers.llm.constraint import Compiler
from aios_workers.llm.cores.llama.library import Library

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
_PIECE_BYTES = 256
# How ChatML templates name the system message of a conversation that has none.
_DEFAULT_SYSTEM = re.compile(re.escape(TURN_START) + r"system(?:\\n|\n)(.*?)" + re.escape(TURN_END))


class Vocabulary:
    """Tokens to bytes and conversations to tokens. One thread may read while another decodes."""

    def __init__(self, library: Library, model: int) -> None:
        self._c = library.c
        self._model = model
        self._vocab = self._c.llama_model_get_vocab(model)
        self.size = int(self._c.llama_vocab_n_tokens(self._vocab))
        self._pieces: dict[int, bytes] = {}
        template = self._c.llama_model_chat_template(model, None)
        self._default_system = _default_system(template.decode("utf-8") if template else "")
        self._start, self._end = (self._special(text) for text in (TURN_START, TURN_END))
        self._newline = self.tokenize("\n")
        self.longest_piece_bytes = max(len(self._piece(token)) for token in range(self.size))
        adds_bos = self._c.llama_vocab_get_add_bos(self._vocab)
        bos = self._c.llama_vocab_bos(self._vocab)
        # ChatML models name the start of a turn as their first token; it is not there twice.
        self._prefix = (int(bos),) if adds_bos and bos != self._start else ()

    @classmethod
    def load(cls, library: Library, weights: Path) -> Vocabulary:
        """Read the vocabulary of a weights file: about 0.4 s and 40 MB, no thread."""
        return cls(library, library.load_model(weights, vocab_only=True))

    def close(self) -> None:
        """Free it; nothing may be called afterwards."""
        if self._model:
            self._c.llama_model_free(self._model)
            self._model = 0

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return bool(self._c.llama_vocab_is_eog(self._vocab, token))

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """Return the ids of a conversation up to the start of the answer.

        Only the template's own markers become special tokens: a message that contains
        `<|im_end|>` contains ten harmless characters. The template shows no tools.
        """
        del tools
        turns = [(message.role, message.content) for message in messages]
        if self._default_system and (not turns or turns[0][0] != "system"):
            turns.insert(0, ("system", self._default_system))
        ids = list(self._prefix)
        for role, content in turns:
            ids += (self._start, *self.tokenize(f"{role}\n{content}"), self._end, *self._newline)
        ids += (self._start, *self.tokenize("assistant\n"))
        return tuple(ids)

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Return the ids of plain text; nothing in it is special."""
        return self._tokenize(text.encode("utf-8", "replace"), parse_special=False)

    def compiler(self) -> Compiler:
        """Return a compiler of constraints over these tokens; control tokens are in no text."""
        return Compiler(
            [self._piece(token) for token in range(self.size)],
            [token for token in range(self.size) if self.is_end(token)],
            lambda data: self._tokenize(data, parse_special=False),
        )

    def decode(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of tokens; control tokens have none."""
        return b"".join(map(self._piece, ids))

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            buffer = ctypes.create_string_buffer(_PIECE_BYTES)
            length = self._c.llama_token_to_piece(
                self._vocab, token, buffer, _PIECE_BYTES, 0, False
            )
            if length < 0:
                buffer = ctypes.create_string_buffer(-length)
                length = self._c.llama_token_to_piece(self._vocab, token, buffer, -length, 0, False)
            piece = self._pieces[token] = buffer.raw[:length]
        return piece

    def _special(self, text: str) -> int:
        ids = self._tokenize(text.encode(), parse_special=True)
        if len(ids) != 1 or not self._c.llama_vocab_is_control(self._vocab, ids[0]):
            raise _not_chatml(f"{text} is not one of its special tokens")
        return ids[0]

    def _tokenize(self, data: bytes, *, parse_special: bool) -> tuple[int, ...]:
        room = len(data) + 1  # a token has at least one byte
        ids = (ctypes.c_int32 * room)()
        count = self._c.llama_tokenize(
            self._vocab, data, len(data), ids, room, False, parse_special
        )
        return tuple(ids[:count])


def _default_system(template: str) -> str:
    """Return the system message that a ChatML template adds where there is none, or nothing."""
    if TURN_START not in template:
        raise _not_chatml("its chat template has no such turns")
    found = _DEFAULT_SYSTEM.search(template)
    return found.group(1) if found else ""


def _not_chatml(why: str) -> InvalidConfig:
    return InvalidConfig(
        f"the model does not speak ChatML: {why}",
        field="weights",
        remedy="use weights of a ChatML model, such as SmolLM2 or Qwen",
    )
