"""The model's tokenizer and chat template, loaded without its weights.

A worker renders prompts and decodes answers in its own process; the weights are in another.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from pathlib import Path

from aios_broker.contract.errors import CoreError
from aios_broker.contract.llm import Message, Tool
from aios_workers.llm.chat.markers import Markers
from aios_workers.llm.chat.prompt import PLAIN, PromptWriter, Speech
from aios_workers.llm.chat.template import ChatTemplate
from aios_workers.llm.constraint import Compiler
from aios_workers.llm.cores.llama.library import Library

_PIECE_BYTES = 256
_NO_TOKEN = -1

logger = logging.getLogger(__name__)


class Vocabulary:
    """Tokens to bytes and conversations to tokens. One thread may read while another decodes."""

    def __init__(self, library: Library, model: int) -> None:
        self._c = library.c
        self._model = model
        self._vocab = self._c.llama_model_get_vocab(model)
        self.size = int(self._c.llama_vocab_n_tokens(self._vocab))
        self._pieces: dict[int, bytes] = {}
        template = self._c.llama_model_chat_template(model, None)
        self.template = template.decode("utf-8", "replace") if template else None
        self.speech = Speech.of(self.template or "")
        self._special = self._special_tokens()
        self.turn_ends = frozenset[int]()  # of its template, once it is prepared
        # What the model writes of its reasoning and calls is text, though tokens of their own.
        self._shown = {
            token: text.encode()
            for text, token in self._special.items()
            if self.speech.is_mark(text) and not self.is_end(token)
        }
        self.longest_piece_bytes = max(len(self._piece(token)) for token in range(self.size))
        self._adds_bos = bool(self._c.llama_vocab_get_add_bos(self._vocab))
        self._bos = int(self._c.llama_vocab_bos(self._vocab))
        self._prompts: PromptWriter | None = None
        self.reasoning = self.speech.thoughts(self._with_markers)

    @classmethod
    def load(cls, library: Library, weights: Path) -> Vocabulary:
        """Read the vocabulary of a weights file, and try its template: about 0.6 s and 40 MB.

        Raises:
            InvalidConfig: The file's chat template is of no use.
        """
        made = cls(library, library.load_model(weights, vocab_only=True))
        try:
            made.prepare(weights.name)
        except BaseException:
            made.close()
            raise
        return made

    def prepare(self, subject: str) -> None:
        """Get ready to render; `subject`: whose template it is, for messages.

        A file without a template is that of a completion model: it reads `role: text` lines.
        """
        if self.template is None:
            logger.warning("%s has no chat template: it reads `role: text` lines", subject)
        eos = int(self._c.llama_vocab_eos(self._vocab))
        special = {"bos_token": self._text(self._bos), "eos_token": self._text(eos)}
        template = ChatTemplate(self.template or PLAIN, special, field="gguf", subject=subject)
        try:
            self._prompts = PromptWriter(
                template, Markers(self._special), self._with_markers, self.tokenize
            )
        except BaseException:
            template.close()
            raise
        self.turn_ends = self._prompts.turn_ends

    def close(self) -> None:
        """Free it; nothing may be called afterwards."""
        if self._prompts is not None:
            self._prompts.close()
        if self._model:
            self._c.llama_model_free(self._model)
            self._model = 0

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation, as the library or the template knows."""
        return token in self.turn_ends or bool(self._c.llama_vocab_is_eog(self._vocab, token))

    def render(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, continues: bool = False
    ) -> tuple[int, ...]:
        """Return the ids of a conversation up to the start of the answer.

        `continues`: to the end of the last message, which the model is to go on with. Only the
        template's own markers become special tokens: a message that contains `<|im_end|>`
        contains ten harmless characters. The first token is written once, by the template or here.

        Raises:
            InvalidSyscall: The template refuses these messages.
        """
        if self._prompts is None:
            raise CoreError("this vocabulary renders nothing", remedy="call prepare() first")
        ids = self._prompts.ids(messages, tools, continues=continues)
        if self._adds_bos and self._bos != _NO_TOKEN and ids[:1] != (self._bos,):
            return (self._bos, *ids)
        return ids

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
        """Return the bytes of tokens; control tokens have none, but for marks of the family's."""
        return b"".join(map(self._piece, ids))

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            shown = self._shown.get(token)
            piece = self._bytes(token, special=False) if shown is None else shown
            self._pieces[token] = piece
        return piece

    def _bytes(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        length = self._c.llama_token_to_piece(self._vocab, token, buffer, _PIECE_BYTES, 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = self._c.llama_token_to_piece(self._vocab, token, buffer, -length, 0, special)
        return buffer.raw[:length]

    def _special_tokens(self) -> dict[str, int]:
        is_control = self._c.llama_vocab_is_control
        return {
            self._text(token): token for token in range(self.size) if is_control(self._vocab, token)
        }

    def _text(self, token: int) -> str:
        if token == _NO_TOKEN:
            return ""
        return self._bytes(token, special=True).decode("utf-8", "replace")

    def _with_markers(self, text: str) -> tuple[int, ...]:
        return self._tokenize(text.encode("utf-8", "replace"), parse_special=True)

    def _tokenize(self, data: bytes, *, parse_special: bool) -> tuple[int, ...]:
        room = len(data) + 1  # a token has at least one byte
        ids = (ctypes.c_int32 * room)()
        count = self._c.llama_tokenize(
            self._vocab, data, len(data), ids, room, False, parse_special
        )
        return tuple(ids[:count])
