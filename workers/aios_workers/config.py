"""What a worker process is told by its environment. Read once, in `main`; passed on by hand."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from aios_broker.audit_folder import AuditFolder
from aios_broker.catalogue import catalogue_path, cores_source, read_catalogue
from aios_broker.config import (
    KernelConfig,
    LogFormat,
    LogLevel,
    default_state_dir,
    read_settings,
    refuse_unknown,
    variables_of,
)
from aios_broker.contract.cores import Core, LlamaSettings, SGLangSettings, SimulatedSettings
from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.tools import SandboxKind
from aios_broker.postgres.database import check_database_url
from aios_broker.redis.connection import parse_url
from aios_broker.tool_catalogue import tools_path
from aios_workers.runtime.loop import DEFAULT_DRAIN_S, DEFAULT_LEASE_S, Limits

_SIMULATED = SimulatedSettings()
_SERVER = SGLangSettings()
_Limit = Annotated[float, Meta(gt=0.0, le=86_400.0)]
_Speed = Annotated[float, Meta(ge=0.0)]  # tokens/s; 0: as fast as this computer can


class WorkerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a worker of any module. Each field is AIOS_<NAME>."""

    redis_url: str
    state_dir: Path  # where `cores.toml` lies unless AIOS_CORES says where
    cores: Path | None = None
    tools: Path | None = None  # the file that describes them; None: tools.toml in the state dir
    audit_dir: Path | None = None  # the audit log's key and newest line; None: in the state dir
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
    tool_sandbox: SandboxKind = "bubblewrap"  # none: tools see what the worker's user sees
    tool_slots: Annotated[int, Meta(ge=1, le=10_000)] = 64  # syscalls at once
    exec_agent_sessions: Annotated[int, Meta(ge=0, le=10_000)] = 8  # of one agent, at once
    exec_tenant_sessions: Annotated[int, Meta(ge=0, le=10_000)] = 64  # of one tenant, at once
    # Of one agent in storage, all versions counted; its own limit, where it has one, goes before.
    storage_max_bytes: Annotated[int, Meta(ge=0)] = 1024 * 1024 * 1024
    storage_keep_versions: Annotated[int, Meta(ge=1, le=100_000)] = 100  # of one file
    storage_mounts: str = ""  # which directories may be mounted, and by whom: see `MountSetting`
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
    sglang_python: str | None = None  # has sglang; None: the worker's own
    sglang_flags: str = ""  # of our own server, quoted as for a shell
    sglang_log: Path | None = None  # of our own server
    sglang_start_limit_s: _Limit = _SERVER.start_limit_s
    sglang_first_token_limit_s: _Limit = _SERVER.first_token_limit_s
    sglang_stall_limit_s: _Limit = _SERVER.stall_limit_s
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> WorkerConfig:
        """Read the settings.

        Raises:
            InvalidConfig: A value is missing, malformed or out of range, or a variable
                has a name that nobody reads; `field` names it.
        """
        refuse_unknown(environ, known=[*variables_of(cls), *variables_of(KernelConfig)])
        defaults = {"AIOS_STATE_DIR": str(default_state_dir(environ))}
        config = read_settings(cls, {**defaults, **environ})
        parse_url(config.redis_url)
        config.environment_core()  # refuses what cannot work
        if config.database_url is not None:
            check_database_url(config.database_url)
        return config

    @property
    def limits(self) -> Limits:
        """How long the worker holds on."""
        return Limits(self.worker_lease_s, self.worker_drain_s)

    def core(self, name: str | None) -> tuple[str, Core]:
        """Return the name and the settings of the core that this worker is to run.

        Args:
            name: Of a core of the file; None: the one that the environment describes.

        Raises:
            InvalidConfig: The file is wrong, or has no such core.
        """
        catalogue = read_catalogue(self.cores_path)
        if name is not None:
            return name, catalogue.one(name)
        name, core = self.environment_core()
        return name, replace(core, default=not catalogue.has_default)

    def settings_now(self, name: str | None) -> Core:
        """Return the settings of a core that runs, as the file has them now.

        Raises:
            InvalidConfig: That cannot be told: its entry is wrong, or, of the environment's core,
                whether it is the default. It stays as it was.
        """
        catalogue = read_catalogue(self.cores_path)
        if name is None and not catalogue.has_default:
            catalogue.checked()
        return self.core(name)[1]

    @property
    def cores_path(self) -> Path:
        """Where the file of cores lies, whether it is there or not."""
        return catalogue_path(self.state_dir, self.cores).absolute()

    @property
    def tools_path(self) -> Path:
        """Where the file of tools lies, whether it is there or not."""
        return tools_path(self.state_dir, self.tools).absolute()

    @property
    def tools_source(self) -> str:
        """Who describes this worker's tools."""
        return cores_source(self.tools_path)

    @property
    def audit_folder(self) -> AuditFolder:
        """Where the key of the audit log lies."""
        return AuditFolder.of(self.state_dir, self.audit_dir)

    @property
    def source(self) -> str:
        """Who describes this worker's core."""
        return cores_source(self.cores_path)

    def environment_core(self) -> tuple[str, Core]:
        """Return the core that the environment describes; without a name it has its model's.

        Raises:
            InvalidConfig: It cannot work.
        """
        match self.llm_core:
            case "llama":
                return "", LlamaSettings(
                    slots=self.llm_slots,
                    context_tokens=self.llm_context_tokens,
                    threads=self.llm_threads,
                )
            case "simulated":
                return "", self._simulated_core()
            case "sglang":
                return self.sglang_name or "", self._sglang_core()

    def _simulated_core(self) -> SimulatedSettings:
        return SimulatedSettings(
            slots=self.llm_slots,
            context_tokens=self.llm_context_tokens,
            seed=self.simulated_core_seed,
            prefill_tokens_per_s=self.simulated_core_prefill_tokens_per_s,
            decode_tokens_per_s=self.simulated_core_decode_tokens_per_s,
            kv_tokens=self.simulated_core_kv_tokens,
            end_probability=self.simulated_core_end_probability,
        )

    def _sglang_core(self) -> SGLangSettings:
        """Raise InvalidConfig: it has neither a server nor a model, or unreadable flags."""
        try:
            flags = tuple(shlex.split(self.sglang_flags))
        except ValueError as error:
            raise InvalidConfig(
                f"cannot be read: {error}", field="AIOS_SGLANG_FLAGS", remedy="close the quotes"
            ) from error
        if self.sglang_url is None and self.sglang_model is None:
            raise InvalidConfig(
                "an SGLang core needs a server or a model",
                field="AIOS_SGLANG_URL",
                remedy="set AIOS_SGLANG_URL to a running server, or AIOS_SGLANG_MODEL to a model",
            )
        if self.sglang_url is not None and not self.sglang_url.startswith(("http://", "https://")):
            raise InvalidConfig(
                f"{self.sglang_url!r} is not the address of an HTTP server",
                field="AIOS_SGLANG_URL",
                remedy="begin it with http:// or https://",
            )
        return SGLangSettings(
            url=self.sglang_url,
            model=self.sglang_model,
            tokenizer=self.sglang_tokenizer,
            api_key_env="AIOS_SGLANG_API_KEY" if self.sglang_api_key else None,
            python=self.sglang_python,
            flags=flags,
            log=str(self.sglang_log) if self.sglang_log is not None else None,
            slots=self.llm_slots,
            context_tokens=self.llm_context_tokens,
            start_limit_s=self.sglang_start_limit_s,
            first_token_limit_s=self.sglang_first_token_limit_s,
            stall_limit_s=self.sglang_stall_limit_s,
        )
