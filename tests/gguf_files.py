"""Writes small GGUF files: models of two layers with random weights, and damaged ones.

Their weights follow from a seed, in any type of number; their tokenizers are byte-level. So that
`any file` is tested with files that no one has to fetch.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aios_workers.llm.cores.llama.gguf_names import TENSOR_TYPES

ALIGNMENT = 32
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
NORMAL, CONTROL = 1, 3
START, END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TYPE_CODES = {name: code for code, (name, _, _) in TENSOR_TYPES.items()}
# Where the 16-bit scales lie in a block of each type; what is left is random.
_SCALES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
# About what makes weights of 0.05 of the type's whole numbers.
_SCALE = {"Q8_0": 4e-4, "Q6_K": 4e-5, "Q3_K": 4e-4, "Q2_K": 2e-3, "IQ4_XS": 2e-5, "IQ4_NL": 5e-4}


@dataclass(frozen=True)
class TinyModel:
    """What a file is to be; the numbers are multiples of a block of any type."""

    architecture: str = "llama"
    weights: str = "F16"
    seed: int = 1
    layers: int = 2
    embedding: int = 256
    feed_forward: int = 512
    heads: int = 4
    kv_heads: int = 2
    context_tokens: int = 2_048
    tokenizer: str = "gpt2"
    template: str | None = CHATML
    metadata: Mapping[str, object] = field(default_factory=dict)  # None takes a key away


def byte_texts() -> list[str]:
    """Return how byte-level tokenizers write each byte."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in shown]
    names = {byte: chr(byte) for byte in shown}
    names |= {byte: chr(256 + place) for place, byte in enumerate(rest)}
    return [names[byte] for byte in range(256)]


def vocabulary(model: TinyModel) -> tuple[list[str], list[int]]:
    """Return the texts and kinds of tokens: the bytes, then those of the turns, then padding."""
    if model.tokenizer == "llama":  # SentencePiece: <0x..> for bytes, and a few words
        texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
        kinds = [2, CONTROL, CONTROL, *([6] * 256), NORMAL]
    else:
        texts, kinds = byte_texts(), [NORMAL] * 256
    texts += [START, END]
    kinds += [CONTROL, CONTROL]
    while len(texts) < 512:
        texts.append(f"<pad{len(texts)}>")
        kinds.append(CONTROL)
    return texts, kinds


def metadata_of(model: TinyModel) -> dict[str, object]:
    """Return what the header of such a model says."""
    arch, (texts, kinds) = model.architecture, vocabulary(model)
    values: dict[str, object] = {
        "general.architecture": arch,
        "general.type": "model",
        "general.name": f"tiny {arch}",
        f"{arch}.context_length": model.context_tokens,
        f"{arch}.embedding_length": model.embedding,
        f"{arch}.block_count": model.layers,
        f"{arch}.feed_forward_length": model.feed_forward,
        f"{arch}.attention.head_count": model.heads,
        f"{arch}.attention.head_count_kv": model.kv_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.dimension_count": model.embedding // model.heads,
        "tokenizer.ggml.model": model.tokenizer,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [0.0] * len(texts),
        "tokenizer.ggml.eos_token_id": texts.index(END),
        "tokenizer.ggml.bos_token_id": texts.index(START),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": model.template,
    }
    if model.tokenizer == "gpt2":
        values["tokenizer.ggml.pre"] = "qwen2"
        values["tokenizer.ggml.merges"] = ["a b"]
    values |= model.metadata
    return {key: value for key, value in values.items() if value is not None}


def write_model(path: Path, model: TinyModel | None = None) -> Path:
    """Write a model's file and return its path."""
    model = model or TinyModel()
    rng = np.random.default_rng(model.seed)
    tensors = [(name, shape, _numbers(rng, name, shape, model)) for name, shape in _shapes(model)]
    path.write_bytes(gguf_bytes(metadata_of(model), [_named(*each, model) for each in tensors]))
    return path


def gguf_bytes(
    metadata: Mapping[str, object],
    tensors: Sequence[tuple[str, tuple[int, ...], int, bytes]] = (),
    *,
    version: int = 3,
) -> bytes:
    """Return a file of metadata and tensors (name, shape, type, data)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + _value(value) for key, value in metadata.items())
    data = b""
    for name, shape, code, numbers in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", code, len(data))
        data += numbers + b"\0" * (-len(numbers) % ALIGNMENT)
    return head + b"\0" * (-len(head) % ALIGNMENT) + data


def text(value: str) -> bytes:
    """Return a text as the format has it."""
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: object) -> bytes:
    if isinstance(value, list):
        return _array(value)
    match value:
        case bool():
            return struct.pack("<I?", BOOL, value)
        case int():
            return struct.pack("<II", U32, value)
        case float():
            return struct.pack("<If", F32, value)
        case str():
            return struct.pack("<I", STRING) + text(value)
        case _:
            raise TypeError(f"no value of a header: {value!r}")


def _array(values: Sequence[object]) -> bytes:
    match values[0]:
        case str():
            head = struct.pack("<IIQ", ARRAY, STRING, len(values))
            return head + b"".join(text(str(value)) for value in values)
        case float():
            return struct.pack(f"<IIQ{len(values)}f", ARRAY, F32, len(values), *values)
        case int():
            return struct.pack(f"<IIQ{len(values)}i", ARRAY, I32, len(values), *values)
        case _:
            raise TypeError(f"no array of a header: {values!r}")


def _shapes(model: TinyModel) -> list[tuple[str, tuple[int, ...]]]:
    """Return the tensors of a Llama, in the format's order of dimensions; Qwen 2 adds biases."""
    width, inner = model.embedding, model.feed_forward
    kv_width = width // model.heads * model.kv_heads
    size = len(vocabulary(model)[0])
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (width, size)),
        ("output_norm.weight", (width,)),
        ("output.weight", (width, size)),
    ]
    for layer in range(model.layers):
        block = [
            ("attn_norm.weight", (width,)),
            ("attn_q.weight", (width, width)),
            ("attn_k.weight", (width, kv_width)),
            ("attn_v.weight", (width, kv_width)),
            ("attn_output.weight", (width, width)),
            ("ffn_norm.weight", (width,)),
            ("ffn_gate.weight", (width, inner)),
            ("ffn_up.weight", (width, inner)),
            ("ffn_down.weight", (inner, width)),
        ]
        if model.architecture == "qwen2":
            block += [
                ("attn_q.bias", (width,)),
                ("attn_k.bias", (kv_width,)),
                ("attn_v.bias", (kv_width,)),
            ]
        if model.architecture == "qwen3":
            head = width // model.heads
            block += [("attn_q_norm.weight", (head,)), ("attn_k_norm.weight", (head,))]
        shapes += [(f"blk.{layer}.{name}", shape) for name, shape in block]
    return shapes


def _numbers(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], model: TinyModel
) -> bytes:
    count = int(np.prod(shape))
    if len(shape) == 1:
        spread = rng.standard_normal(count) * 0.1 + name.endswith("norm.weight")
        return bytes(spread.astype(np.float32).tobytes())
    if model.weights in {"F32", "F16", "BF16"}:
        values = (rng.standard_normal(count) * 0.08).astype(np.float32)
        return _plain(values, model.weights)
    _, block, block_bytes = TENSOR_TYPES[TYPE_CODES[model.weights]]
    blocks = rng.integers(0, 256, (count // block, block_bytes), dtype=np.uint8)
    for place in _SCALES[model.weights]:
        scale = rng.uniform(0.5, 1.5, len(blocks)) * _SCALE.get(model.weights, 4e-3)
        if model.weights in {"Q4_K", "Q5_K"}:
            scale /= 16
        halves = scale.astype(np.float16).view(np.uint8).reshape(-1, 2)
        blocks[:, place : place + 2] = halves
    return bytes(blocks.tobytes())


def _plain(values: NDArray[np.float32], kind: str) -> bytes:
    if kind == "F16":
        return bytes(values.astype(np.float16).tobytes())
    if kind == "BF16":
        return bytes((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return bytes(values.tobytes())


def _named(
    name: str, shape: tuple[int, ...], data: bytes, model: TinyModel
) -> tuple[str, tuple[int, ...], int, bytes]:
    kind = "F32" if len(shape) == 1 else model.weights
    return name, shape, TYPE_CODES[kind], data
