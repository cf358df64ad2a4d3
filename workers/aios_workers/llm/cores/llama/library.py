"""llama.cpp's C interface, called by ctypes in the shared object that the xllamacpp wheel carries.

The structures below are those of build b11549 and of no other: the package is pinned, its
version is checked, and so are the values that the library's own defaults must have where we
expect them. Nothing else in this package knows a C type. Beside it: the weights that it loads.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import os
from collections import deque
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_size_t,
    c_uint8,
    c_uint32,
    c_void_p,
)
from pathlib import Path
from typing import ClassVar

from aios_broker.contract.errors import InvalidConfig
from aios_broker.process.child import package_dir
from aios_workers.llm.cores.llama.gguf import GgufInfo, weights_fingerprint
from aios_workers.model_files import SMOLLM2

PACKAGE = "xllamacpp"
PACKAGE_VERSION = "2026.10.11549"
BUILD = "b11549"
# Read once by the library. Its tiled products of K-quants, from 8 rows up, round in another way
# than those of single rows (docs/decisions/0023).
TILED_PRODUCTS = "GGML_CPU_TILED_MM"
MAX_WORDS = 3  # of the library's errors, for a message

LOG_LEVEL_ERROR = 4
LogCallback = CFUNCTYPE(None, c_int, c_char_p, c_void_p)


class ModelParams(Structure):
    """`llama_model_params`."""

    _fields_: ClassVar = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParams(Structure):
    """`llama_context_params`."""

    _fields_: ClassVar = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        # Null by default and never set here; which of these three pointers is new in this build
        # does not matter, the defaults below show that the booleans are where they must be.
        ("reserved", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(Structure):
    """`llama_batch`."""

    _fields_: ClassVar = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


# Defaults that another build's layout would not show in these places.
_MODEL_DEFAULTS: dict[str, object] = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "main_gpu": 0,
    "kv_overrides": None,
    "vocab_only": False,
    "use_extra_bufts": True,
    "no_alloc": False,
}
_CONTEXT_DEFAULTS: dict[str, object] = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max_per_seq": 1,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "yarn_beta_slow": -1.0,
    "defrag_thold": -1.0,
    "type_k": 1,
    "type_v": 1,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "swa_full": True,
    "kv_unified": False,
    "n_samplers": 0,
    "ctx_other": None,
}

_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [LogCallback, c_void_p]),
    "llama_print_system_info": (c_char_p, []),
    "llama_supports_gpu_offload": (c_bool, []),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_chat_template": (c_char_p, [c_void_p, c_char_p]),
    "llama_model_n_ctx_train": (c_int32, [c_void_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_n_ctx_seq": (c_uint32, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_model_n_embd": (c_int32, [c_void_p]),
    "llama_get_embeddings_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_state_seq_get_size": (c_size_t, [c_void_p, c_int32]),
    "llama_state_seq_get_data": (c_size_t, [c_void_p, POINTER(c_uint8), c_size_t, c_int32]),
    "llama_state_seq_set_data": (c_size_t, [c_void_p, POINTER(c_uint8), c_size_t, c_int32]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_vocab_is_control": (c_bool, [c_void_p, c_int32]),
    "llama_vocab_bos": (c_int32, [c_void_p]),
    "llama_vocab_eos": (c_int32, [c_void_p]),
    "llama_vocab_get_add_bos": (c_bool, [c_void_p]),
    "llama_tokenize": (
        c_int32,
        [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool],
    ),
    "llama_token_to_piece": (c_int32, [c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool]),
}


class Library:
    """The loaded shared object: `library.c.llama_...` with checked argument types.

    Loading costs about 40 MB of shared pages and starts no thread.
    """

    def __init__(self, c: ctypes.CDLL) -> None:
        self.c = c

    @classmethod
    def load(cls, *, exact: bool = True) -> Library:
        """Load it, silence its chatter, and check that it is the build we know.

        `exact`: products of many rows are those of single rows, bit for bit. It holds for the
        whole process, from the first computation on.

        Raises:
            InvalidConfig: the package is missing or another version.
        """
        if exact:
            os.putenv(TILED_PRODUCTS, "0")
        c = ctypes.CDLL(str(_shared_object()))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(c, name)
            function.restype, function.argtypes = result, arguments
        _check_defaults(c.llama_model_default_params(), _MODEL_DEFAULTS)
        _check_defaults(c.llama_context_default_params(), _CONTEXT_DEFAULTS)
        c.llama_log_set(_LOG_CALLBACK, None)
        c.llama_backend_init()
        return cls(c)

    @property
    def system_info(self) -> str:
        """The instruction sets that the library was compiled for, as it words them."""
        return str(self.c.llama_print_system_info().decode("ascii", "replace")).strip()

    @property
    def offloads(self) -> bool:
        """Whether this build can compute layers on a GPU."""
        return bool(self.c.llama_supports_gpu_offload())

    def load_model(
        self, path: Path, *, vocab_only: bool, gpu_layers: int = 0, repack: bool = False
    ) -> int:
        """Return the handle of a model; free it with `llama_model_free`.

        `repack`: lay weights out for products of many rows, which round in another way.

        Raises:
            InvalidConfig: the file is not a model that this build reads.
        """
        params = self.c.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = gpu_layers
        params.use_extra_bufts = repack
        _last_errors.clear()
        model = self.c.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise InvalidConfig(
                f"llama.cpp {BUILD} cannot load the file {path}: {' '.join(_last_errors)}",
                field="gguf",
                remedy="name a GGUF file of a model that this build supports",
            )
        return int(model)


def _shared_object() -> Path:
    folder = package_dir(PACKAGE)
    objects = sorted(folder.glob("xllamacpp*.so")) if folder else []
    if not objects:
        raise _not_the_build("is not installed")
    version = importlib.metadata.version(PACKAGE)
    if version != PACKAGE_VERSION:
        raise _not_the_build(f"is of version {version}")
    return objects[0]


def _check_defaults(params: Structure, expected: dict[str, object]) -> None:
    for name, value in expected.items():
        actual = getattr(params, name)
        if actual != value:
            kind = type(params).__name__
            raise _not_the_build(f"has {kind}.{name} = {actual!r} where {value!r} must be")


def _not_the_build(why: str) -> InvalidConfig:
    return InvalidConfig(
        f"the package {PACKAGE} {why}; this core needs {PACKAGE_VERSION} (llama.cpp {BUILD})",
        field=PACKAGE,
        remedy="run `aios setup`",
    )


def _log_errors(level: int, text: bytes | None, _user_data: int | None) -> None:
    if level == LOG_LEVEL_ERROR and text:
        os.write(2, text)  # unbuffered: called from C, perhaps before an abort
        _last_errors.append(" ".join(text.decode("utf-8", "replace").split()))


_last_errors: deque[str] = deque(maxlen=MAX_WORDS)


# The shared object, which is never unloaded, keeps a bare pointer to this: it must live as long.
_LOG_CALLBACK = LogCallback(_log_errors)


def find_weights(path: Path | None = None) -> Path:
    """Return the weights at `path`, or those of the package of the embedded model.

    Raises:
        InvalidConfig: the package is not installed.
    """
    found = path or SMOLLM2.find()
    if found is None:
        raise _unusable(f"the embedded model's weights ({SMOLLM2.package}) are not installed")
    return found


def weights_checksum(info: GgufInfo) -> str:
    """Return what tells these weights from others.

    Of the package's own file its SHA-256 (0.1 to 0.4 s for 98 MB), of any other
    `weights_fingerprint`: a start does not read gigabytes.

    Raises:
        InvalidConfig: it is the file of the package, and not as it was published.
    """
    if info.path != SMOLLM2.find():
        return weights_fingerprint(info)
    with info.path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != SMOLLM2.sha256:
        raise _unusable(f"the weights at {info.path} have the SHA-256 {actual}")
    return actual


def _unusable(message: str) -> InvalidConfig:
    return InvalidConfig(message, field="weights", remedy="run `aios setup`")
