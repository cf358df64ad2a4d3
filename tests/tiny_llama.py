"""A tiny model's folder: a Llama of two layers with a byte-level tokenizer and random weights.

Its weights follow from a seed. (SGLang's own `--load-format dummy` would do for speed, not for
comparing answers: its weights depend on their shapes alone, and all tokens are about as likely.)
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

START, END = "<|start|>", "<|end|>"
END_ID = 1
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|start|>' + message.role + '\n' + message.content + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 512,
    "bos_token_id": 0,
    "eos_token_id": END_ID,
}


def write_model(folder: Path, *, seed: int | None = None) -> Path:
    """Write the model's files into a folder, with a seed its weights too; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if seed is not None:
        weights = {name: to_bfloat16(values) for name, values in random_weights(seed)}
        (folder / "model.safetensors").write_bytes(safetensors(weights))
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": START, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def write_adapter(folder: Path, *, seed: int) -> Path:
    """Write a LoRA adapter of rank 4 with random weights for that model; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rank, hidden, kv = 4, 256, 128
    weights: dict[str, NDArray[np.uint16]] = {}
    for layer in range(2):
        for name, rows in (("q_proj", hidden), ("v_proj", kv)):
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            down = rng.standard_normal((rank, hidden), dtype=np.float32) / np.float32(hidden**0.5)
            up = rng.standard_normal((rows, rank), dtype=np.float32)
            weights[f"{at}.lora_A.weight"] = to_bfloat16(down)
            weights[f"{at}.lora_B.weight"] = to_bfloat16(up)
    (folder / "adapter_model.safetensors").write_bytes(safetensors(weights))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny-llama",
        "r": rank,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def random_weights(seed: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Return weights that keep activations near 1 and make some tokens much likelier."""
    rng = np.random.default_rng(seed)
    hidden, inner, vocabulary, kv = 256, 512, 512, 128

    def matrix(rows: int, columns: int, gain: float = 1.0) -> NDArray[np.float32]:
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        return values * np.float32(gain / columns**0.5)

    yield "model.embed_tokens.weight", matrix(vocabulary, hidden, gain=hidden**0.5)
    for layer in range(2):
        at = f"model.layers.{layer}"
        yield f"{at}.self_attn.q_proj.weight", matrix(hidden, hidden, gain=2.0)
        yield f"{at}.self_attn.k_proj.weight", matrix(kv, hidden, gain=2.0)
        yield f"{at}.self_attn.v_proj.weight", matrix(kv, hidden)
        yield f"{at}.self_attn.o_proj.weight", matrix(hidden, hidden, gain=2.0)
        yield f"{at}.mlp.gate_proj.weight", matrix(inner, hidden)
        yield f"{at}.mlp.up_proj.weight", matrix(inner, hidden)
        yield f"{at}.mlp.down_proj.weight", matrix(hidden, inner, gain=2.0)
        yield f"{at}.input_layernorm.weight", np.ones(hidden, np.float32)
        yield f"{at}.post_attention_layernorm.weight", np.ones(hidden, np.float32)
    yield "model.norm.weight", np.ones(hidden, np.float32)
    yield "lm_head.weight", matrix(vocabulary, hidden, gain=3.0)  # logits of deviation 3


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Cut the lower half of each number's bits."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def safetensors(weights: dict[str, NDArray[np.uint16]]) -> bytes:
    """Return a file of the safetensors format: length, JSON header, bytes."""
    header, at = dict[str, object](), 0
    for name, values in weights.items():
        end = at + values.nbytes
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [at, end]}
        at = end
    head = json.dumps(header).encode()
    data = b"".join(values.tobytes() for values in weights.values())
    return len(head).to_bytes(8, "little") + head + data


def byte_level_tokenizer() -> Tokenizer:
    """Return a tokenizer with two special tokens and one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: token for token, piece in enumerate([START, END, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(START, special=True), AddedToken(END, special=True)])
    return tokenizer


def fallback_tokenizer() -> Tokenizer:
    """Return a tokenizer of SentencePiece's kind: pieces with spaces as ▁, and bytes."""
    pieces = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", "\u2581the", "a", "b", "th", "e", "é", "\u2581東"]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocabulary, merges=[], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "</s>")])
    return tokenizer
