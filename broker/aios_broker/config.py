"""What a kernel process is told by its environment. Read once, in `main`; passed on by hand.

`read_settings` fills any struct from variables, one per field; `KernelConfig` is the struct of
`aios up` and of the commands. Each process's own settings lie in its own `config.py`.
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from aios_broker.audit_folder import AuditFolder
from aios_broker.contract.errors import InvalidConfig
from aios_broker.log import LogFormat as LogFormat  # it is a setting of every process

Settings = TypeVar("Settings", bound=Struct)

PREFIX = "AIOS_"
# Settings that a file may hold, as container engines hand out secrets: AIOS_..._FILE is its path,
# and counts where the setting itself is not there.
SECRET_VARIABLES = ("AIOS_APPROVAL_WEBHOOK_SECRET", "AIOS_DATABASE_URL", "AIOS_REDIS_URL")
FILE_SUFFIX = "_FILE"
MAX_SECRET_BYTES = 65_536
# Settings whose variable is not AIOS_<FIELD>.
OTHER_NAMES = {"key_prefix": "RQ_KEY_PREFIX"}  # RQ's own variable: its tools read it too
# Read by the bootstrap script, by docker-compose.yml and by `aios test`.
BOOTSTRAP_VARIABLES = (
    "AIOS_PYTHON",
    "AIOS_POSTGRES_PORT",
    "AIOS_TEST_PYTHONS",
)
# Where programs that come by the API keep its address and their token, as the pages tell them to.
CLIENT_VARIABLES = ("AIOS_API", "AIOS_TOKEN")
# Read by the scheduler and the workers that `aios up` starts: each checks its own.
PROCESS_VARIABLES = (
    "AIOS_MAX_LOSSES",
    "AIOS_MAX_WAITING",
    "AIOS_QUANTUM_S",
    "AIOS_QUANTUM_TOKENS",
    "AIOS_SCHEDULER_LEASE_S",
    "AIOS_SNAPSHOT_BUDGET_BYTES",
)
PROCESS_PREFIXES = (
    "AIOS_API_",
    "AIOS_APPROVAL_",
    "AIOS_EMBEDDING_",
    "AIOS_LLM_",
    "AIOS_SIMULATED_CORE_",
    "AIOS_SGLANG_",
    "AIOS_STORAGE_",
    "AIOS_TOOL_",
    "AIOS_WORKER_",
)

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
HTTP_SCHEMES = ("http://", "https://")
POSTGRES_SCHEMES = ("postgresql://", "postgres://", "postgresql+psycopg://")

# The names of the cores that AIOS_LLM_CORE stands for: their models'.
ENVIRONMENT_CORES = {"llama": "smollm2-135m", "simulated": "simulated"}

LogLevel = Literal["debug", "info", "warning", "error"]


class KernelConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a whole kernel on one machine. Each field is AIOS_<NAME>."""

    state_dir: Path
    cores: Path | None = None  # the file that describes them; None: cores.toml in the state dir
    tools: Path | None = None  # the file that describes them; None: tools.toml in the state dir
    audit_dir: Path | None = None  # the audit log's key and newest line; None: in the state dir
    models: Path | None = None  # where files are pulled to; None: a folder of the state dir
    redis_url: str | None = None  # None: an embedded server is started
    database_url: str | None = None  # None: an embedded server is started
    # Of the embedded Redis, on 127.0.0.1, with a password; 0: a free one; None: only the private
    # unix socket, without one.
    redis_port: Annotated[int, Meta(ge=0, le=65_535)] | None = None
    # Where Redis has a password: each kind of process logs in as a user of its own, or all alike.
    redis_users: Literal["own", "shared"] = "own"
    # A Redis of others that drops keys when it is full loses syscalls: it is refused, or allowed.
    redis_eviction: Literal["refuse", "allow"] = "refuse"
    # Of its data, beyond which new work is refused; None: half of the machine's memory.
    redis_max_bytes: Annotated[int, Meta(ge=64 * 1024**2)] | None = None
    key_prefix: Annotated[str, Meta(min_length=1, max_length=64)] = "rq"  # RQ_KEY_PREFIX
    policy: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*\Z")] = "rr"
    llm_core: Literal["llama", "simulated", "sglang"] = "llama"
    llm_slots: Annotated[int, Meta(ge=1, le=64)] = 2  # generations at once, per worker
    llm_workers: Annotated[int, Meta(ge=0, le=64)] = 1  # processes, each with the whole model
    schedulers: Annotated[int, Meta(ge=1, le=9)] = 1  # processes; one leads, the others stand by
    tool_workers: Annotated[int, Meta(ge=0, le=64)] = 1  # processes
    state_workers: Annotated[int, Meta(ge=0, le=64)] = 1  # processes: memory, storage, access
    api_host: str = "127.0.0.1"  # who reaches the HTTP API: 0.0.0.0 is everybody who gets here
    # Of the HTTP API; 0: a free one, the same at each start on the same state directory.
    api_port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    # Where processes serve /metrics: each takes the first free port from this one on.
    metrics_port: Annotated[int, Meta(ge=1, le=65_000)] | None = None
    metrics_host: str = "127.0.0.1"  # who may read them: 0.0.0.0 is everybody who gets here
    # Of a collector that traces go to, by OTLP over HTTP; None: there are none.
    otel_endpoint: str | None = None
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "KernelConfig":
        """Read the settings.

        Raises:
            InvalidConfig: An unknown AIOS_ variable, or a bad value; `field` is its name.
        """
        defaults = {"AIOS_STATE_DIR": str(default_state_dir(environ))}
        config = read_settings(cls, {**defaults, **environ})
        refuse_unknown(environ, known=variables_of(cls), passed_on=PROCESS_PREFIXES)
        _check_scheme("AIOS_REDIS_URL", config.redis_url, REDIS_SCHEMES)
        _check_scheme("AIOS_DATABASE_URL", config.database_url, POSTGRES_SCHEMES)
        check_endpoint(config.otel_endpoint)
        return config

    @property
    def environment_core(self) -> str | None:
        """The name of the core that it describes; None: there is none, or its server will say."""
        return ENVIRONMENT_CORES.get(self.llm_core) if self.llm_workers else None

    @property
    def audit_folder(self) -> AuditFolder:
        """Where the key of the audit log lies."""
        return AuditFolder.of(self.state_dir, self.audit_dir)

    def variables(self) -> dict[str, str]:
        """Return the variables that hand these settings on to another process."""
        values = msgspec.structs.asdict(self)
        return {
            variable_of(field): str(value) for field, value in values.items() if value is not None
        }


def environment() -> dict[str, str]:
    """Return this process's environment: the one place where `main` functions take it from."""
    return dict(os.environ)


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Return where a kernel of this user keeps its data unless told otherwise."""
    base = environ.get("XDG_STATE_HOME", "")
    if not base.startswith("/"):  # the XDG specification: a relative path is to be ignored
        base = str(Path(environ.get("HOME") or "~").expanduser() / ".local" / "state")
    return Path(base) / "aios"


def variable_of(field: str) -> str:
    """Return the name of the variable that a field is read from."""
    return OTHER_NAMES.get(field, PREFIX + field.upper())


def variables_of(cls: type[Struct]) -> list[str]:
    """Return the names of all variables that a struct is read from."""
    return [variable_of(field.name) for field in msgspec.structs.fields(cls)]


def read_settings(cls: type[Settings], environ: Mapping[str, str]) -> Settings:
    """Fill a struct from variables; an empty variable counts as unset.

    Raises:
        InvalidConfig: A value is missing, of the wrong type or out of range, or the file that
            holds it cannot be read.
    """
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(cls):
        variable = variable_of(field.name)
        if text := environ.get(variable, "") or _secret_of(variable, environ):
            values[field.name] = _convert(variable, text, field)
        elif field.required:
            raise InvalidConfig("is not set", field=variable, remedy=f"set {variable}")
    return cls(**values)


def refuse_unknown(
    environ: Mapping[str, str], *, known: Iterable[str], passed_on: tuple[str, ...] = ()
) -> None:
    """Refuse AIOS_ variables that nobody reads: most are misspelt.

    Args:
        environ: The variables.
        known: Those that the caller reads.
        passed_on: Prefixes of those that another process reads, and checks.

    Raises:
        InvalidConfig: Names the first one, and the known one that it resembles.
    """
    files = [variable + FILE_SUFFIX for variable in SECRET_VARIABLES]
    all_known = [*known, *files, *BOOTSTRAP_VARIABLES, *CLIENT_VARIABLES, *PROCESS_VARIABLES]
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in all_known:
            continue
        if passed_on and variable.startswith(passed_on):
            continue
        similar = difflib.get_close_matches(variable, all_known, n=1)
        hint = f"did you mean {similar[0]}? Else unset it" if similar else "unset it"
        raise InvalidConfig("no setting has this name", field=variable, remedy=hint)


def _secret_of(variable: str, environ: Mapping[str, str]) -> str:
    """Return what the file of a secret holds; empty: none is named."""
    named = environ.get(variable + FILE_SUFFIX, "")
    if not named or variable not in SECRET_VARIABLES:
        return ""
    path = Path(named)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SECRET_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidConfig(
            f"{path} cannot be read: {why}",
            field=variable + FILE_SUFFIX,
            remedy="name a file that this process may read",
        ) from None
    if not text:
        raise InvalidConfig(
            f"{path} is empty",
            field=variable + FILE_SUFFIX,
            remedy="write the secret into it",
        )
    return text


def _convert(variable: str, text: str, field: msgspec.structs.FieldInfo) -> object:
    try:
        return msgspec.convert(text, field.type, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise InvalidConfig(
            f"{text!r} will not do: {error}",
            field=variable,
            remedy="correct it" if field.required else f"correct or unset it ({field.default!r})",
        ) from error


def _decode(wanted: type, value: object) -> object:
    if wanted is Path:
        return Path(str(value))
    raise NotImplementedError(f"a setting cannot be of type {wanted}")


def check_endpoint(url: str | None) -> None:
    """Return when it can be the address of a collector; raise InvalidConfig where it cannot."""
    _check_scheme("AIOS_OTEL_ENDPOINT", url, HTTP_SCHEMES)


def _check_scheme(variable: str, url: str | None, schemes: tuple[str, ...]) -> None:
    if url is not None and not url.startswith(schemes):
        scheme, separator, _ = url.partition("://")
        raise InvalidConfig(
            f"{scheme!r} is no scheme of such a server" if separator else "it has no scheme",
            field=variable,
            remedy=f"begin it with {', '.join(schemes[:-1])} or {schemes[-1]}",
        )
