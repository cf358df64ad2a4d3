"""What a model will take of the machine's memory, and what is free: before anything is loaded.

llama.cpp takes the KV memory of all slots at once, and the kernel (or the container's limit) kills
the process that asks for more than there is, perhaps another than ours. So it is reckoned from the
header, and refused with both numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aios_broker.contract.errors import InvalidConfig
from aios_workers.llm.cores.llama.gguf import GgufInfo

DEFAULT_CONTEXT_TOKENS = 8_192  # of a slot at most, where nobody says how many
LEAST_CONTEXT_TOKENS = 512  # of a slot, below which nothing useful runs
CONTEXT_STEP_TOKENS = 256  # llama.cpp's own
KV_SHARE = 0.5  # of what the weights leave free, where nobody says how many tokens
PROCESS_BYTES = 160 << 20  # the interpreter, the library, what computing a step takes
_MB, _GB = 1 << 20, 1 << 30
_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What one core process takes."""

    weights_bytes: int
    kv_bytes: int  # of all slots, and of the context for embeddings
    other_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.other_bytes

    def __str__(self) -> str:
        """Say what is for what."""
        return (
            f"{_size(self.total_bytes)} ({_size(self.weights_bytes)} weights, "
            f"{_size(self.kv_bytes)} KV memory, {_size(self.other_bytes)} to compute)"
        )


def memory_need(
    info: GgufInfo, *, slots: int, context_tokens: int, micro_batch_tokens: int
) -> MemoryNeed:
    """Reckon what a model takes with so many slots of so many tokens.

    The activations of a micro-batch are a small multiple of its width; logits are kept for a row of
    each slot, here and in the sampler.
    """
    activations = micro_batch_tokens * info.embedding_length * 4 * 16
    masks = micro_batch_tokens * context_tokens * slots * 4
    logits = slots * info.vocabulary_size * 4 * 4
    return MemoryNeed(
        info.tensor_bytes,
        info.kv_bytes_per_token * context_tokens * (slots + 1),  # one embeds texts
        PROCESS_BYTES + activations + masks + logits,
    )


def default_context_tokens(info: GgufInfo, *, slots: int, free_bytes: int) -> int:
    """Return how many tokens a slot has where nobody says.

    Those that the model was trained for, at most 8,192, and no more than half of what the weights
    leave free can hold.
    """
    tokens = min(info.context_tokens or DEFAULT_CONTEXT_TOKENS, DEFAULT_CONTEXT_TOKENS)
    per_token = info.kv_bytes_per_token * (slots + 1)
    if per_token:
        room = int((free_bytes - info.tensor_bytes - PROCESS_BYTES) * KV_SHARE)
        steps = max(0, room) // per_token // CONTEXT_STEP_TOKENS
        tokens = min(tokens, max(LEAST_CONTEXT_TOKENS, steps * CONTEXT_STEP_TOKENS))
    return tokens


def check_memory(need: MemoryNeed, free: int, info: GgufInfo, *, slots: int, tokens: int) -> None:
    """Return if there is room.

    Raises:
        InvalidConfig: there is not; it has both numbers.
    """
    if need.total_bytes > free:
        raise InvalidConfig(
            f"the model at {info.path} with {slots} slots of {tokens:,} tokens needs {need}, "
            f"and {_size(free)} are free",
            field="gguf",
            remedy="ask for fewer slots or a shorter context, or use a smaller quantisation",
        )


def free_bytes() -> int:
    """Return what a new process may take: of the machine, and of each group that limits this one.

    Memory that holds copies of files counts as free: it is given up for whoever needs it.
    """
    return max(0, min([_machine_free(_PROC / "meminfo"), *_groups_free()]))


def _machine_free(meminfo: Path) -> int:
    for line in meminfo.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise InvalidConfig(
        f"{meminfo} does not say how much memory is available",
        field="gguf",
        remedy="run on Linux 3.14 or newer",
    )


def _groups_free() -> Iterator[int]:
    """Yield what is left to each control group with a limit that this process is in."""
    for line in _lines(_PROC / "self" / "cgroup"):
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            yield from _group_free(_CGROUP, name, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
            yield from _group_free(_CGROUP / "memory", name, limit, used)


def _group_free(root: Path, name: str, limit_file: str, used_file: str) -> Iterator[int]:
    """Yield what is left to a group and to those above it."""
    group = root / name.strip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            return
        limit, used = (_number(folder / each) for each in (limit_file, used_file))
        if limit is not None and used is not None:
            yield limit - used + _file_bytes(folder / "memory.stat")


def _file_bytes(stat: Path) -> int:
    """Return how many bytes of a group's memory are copies of files."""
    fields = dict(line.split(" ", 1) for line in _lines(stat) if " " in line)
    return sum(int(fields.get(name, 0)) for name in ("inactive_file", "active_file"))


def _number(path: Path) -> int | None:
    """Return a file's number; None: there is no such file, or no limit."""
    [text] = _lines(path) or ["max"]
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []  # no such group is mounted here


def _size(size: int) -> str:
    return f"{size / _GB:.1f} GiB" if size >= _GB else f"{size / _MB:.0f} MiB"
