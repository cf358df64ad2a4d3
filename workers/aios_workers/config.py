"""What a worker process is told by its environment. Read once, in `main`; passed on by hand."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from aios_broker.config import (
    KernelConfig,
    LogLevel,
    read_settings,
    refuse_unknown,
    variables_of,
)
from aios_broker.contract.errors import InvalidConfig
from aios_broker.postgres.database import check_database_url
from aios_broker.redis.connection import parse_url
from aios_workers.llm.cores.sglang.settings import SGLangConfig
from aios_workers.llm.cores.simulated.simulated_core import SimulatedCoreConfig
from aios_workers.runtime.loop import DEFAULT_DRAIN_S, DEFAULT_LEASE_S, Limits

_SIMULATED = SimulatedCoreConfig()
_SERVER = SGLangConfig(url="http://127.0.0.1")
_Limit = Annotated[float, Meta(gt=0.0, le=86_400.0)]
_Speed = Annotated[float, Meta(ge=0.0)]  # tokens/s; 0: as fast as this computer can


class WorkerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a worker of any module. Each field is AIOS_<NAME>."""

    redis_url: str
    database_url: str | None = None  # None: snapshots that were spilled cannot be read back
    key_prefix: str = "rq"  # RQ_KEY_PREFIX
    llm_core: Literal["llama", "simulated", "sglang"] = "llama"
    llm_slots: Annotated[int, Meta(ge=1, le=64)] = 2  # generations at once
    llm_context_tokens: Annotated[int, Meta(ge=256)] = 2048  # prompt and answer together
    llm_threads: Annotated[int, Meta(ge=1, le=256)] = 1  # of the embedded core
    llm_kv_dir: Path | None = None  # where its cores share KV states; None: nowhere
    llm_kv_max_bytes: Annotated[int, Meta(ge=0)] = 512 * 1024 * 1024  # of all files there
    embedding_model: Literal["minilm", "none"] = "minilm"  # of memory and storage
    embedding_core: str | None = None  # a core whose embeddings are used instead
    embedding_dimension: Annotated[int, Meta(ge=1, le=4_000)] | None = None  # of that core's
    # Until when a person may decide, unless the syscall's own deadline comes first.
    approval_ttl_s: Annotated[float, Meta(gt=0.0, le=30 * 86_400.0)] = 3_600.0
    approval_webhook: str | None = None  # an address that is told what waits for a person
    approval_webhook_secret: str = ""  # what its requests are signed with: 16 characters or more
    approval_webhook_private: bool = False  # it may lie in a private network
    tool_slots: Annotated[int, Meta(ge=1, le=10_000)] = 64  # syscalls at once
    # Of one agent in storage, all versions counted; its own limit, where it has one, goes before.
    storage_max_bytes: Annotated[int, Meta(ge=0)] = 1024 * 1024 * 1024
    storage_keep_versions: Annotated[int, Meta(ge=1, le=100_000)] = 100  # of one file
    storage_mounts: str = ""  # absolute paths, `:` between them; agents may mount what is below
    worker_lease_s: Annotated[float, Meta(ge=0.5, le=600.0)] = DEFAULT_LEASE_S
    worker_drain_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = DEFAULT_DRAIN_S
    simulated_core_seed: Annotated[int, Meta(ge=0)] = _SIMULATED.seed
    simulated_core_prefill_tokens_per_s: _Speed = _SIMULATED.prefill_tokens_per_s
    simulated_core_decode_tokens_per_s: _Speed = _SIMULATED.decode_tokens_per_s
    simulated_core_kv_tokens: Annotated[int, Meta(ge=0)] = _SIMULATED.kv_tokens
    simulated_core_end_probability: Annotated[float, Meta(ge=0.0, le=1.0)] = (
        _SIMULATED.end_probability
    )
    metrics_port: Annotated[int, Meta(ge=1, le=65_000)] | None = None  # None: not served
    metrics_host: str = "127.0.0.1"  # who may read them: 0.0.0.0 is everybody who gets here
    sglang_url: str | None = None  # of a running server; None: the worker starts one
    sglang_model: str | None = None  # what to load, or what has to be loaded there
    sglang_name: str | None = None  # the name that syscalls use; None: the server's
    sglang_tokenizer: str | None = None  # a folder, or `bytes`; None: the server's
    sglang_api_key: str | None = None
    sglang_python: str = _SERVER.python  # has sglang
    sglang_flags: str = ""  # of our own server, quoted as for a shell
    sglang_log: Path | None = None  # of our own server
    sglang_start_limit_s: _Limit = _SERVER.start_limit_s
    sglang_first_token_limit_s: _Limit = _SERVER.first_token_limit_s
    sglang_stall_limit_s: _Limit = _SERVER.stall_limit_s
    log_level: LogLevel = "info"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> WorkerConfig:
        """Read the settings.

        Raises:
            InvalidConfig: A value is missing, malformed or out of range, or a variable
                has a name that nobody reads; `field` names it.
        """
        refuse_unknown(environ, known=[*variables_of(cls), *variables_of(KernelConfig)])
        config = read_settings(cls, environ)
        parse_url(config.redis_url)
        if config.llm_core == "sglang":
            _ = config.sglang  # refuses what cannot work
        if config.database_url is not None:
            check_database_url(config.database_url)
        return config

    @property
    def limits(self) -> Limits:
        """How long the worker holds on."""
        return Limits(self.worker_lease_s, self.worker_drain_s)

    @property
    def simulated_core(self) -> SimulatedCoreConfig:
        """What the simulated core is like."""
        return SimulatedCoreConfig(
            seed=self.simulated_core_seed,
            slots=self.llm_slots,
            context_tokens=self.llm_context_tokens,
            prefill_tokens_per_s=self.simulated_core_prefill_tokens_per_s,
            decode_tokens_per_s=self.simulated_core_decode_tokens_per_s,
            kv_tokens=self.simulated_core_kv_tokens,
            end_probability=self.simulated_core_end_probability,
        )

    @property
    def sglang(self) -> SGLangConfig:
        """Which SGLang server the core uses.

        Raises:
            InvalidConfig: It has neither a server nor a model, or flags that cannot be read.
        """
        try:
            flags = tuple(shlex.split(self.sglang_flags))
        except ValueError as error:
            raise InvalidConfig(
                f"cannot be read: {error}", field="AIOS_SGLANG_FLAGS", remedy="close the quotes"
            ) from error
        return SGLangConfig(
            url=self.sglang_url,
            model=self.sglang_model,
            name=self.sglang_name,
            tokenizer=self.sglang_tokenizer,
            api_key=self.sglang_api_key,
            python=self.sglang_python,
            flags=flags,
            log_path=self.sglang_log,
            slots=self.llm_slots,
            context_tokens=self.llm_context_tokens,
            start_limit_s=self.sglang_start_limit_s,
            first_token_limit_s=self.sglang_first_token_limit_s,
            stall_limit_s=self.sglang_stall_limit_s,
        )
