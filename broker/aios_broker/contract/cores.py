"""The cores of a kernel, as `cores.toml` describes them. Pure: values and their rules.

    [cores.qwen]
    kind = "llama"
    gguf = "/models/qwen2.5-coder-0.5b.gguf"
    slots = 4
    aliases = ["gpt-4o-mini"]
    fallback = ["hosted"]

Reading and writing the file, and the environment's one core, is `aios_broker.catalogue`'s.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct, field
from msgspec.json import encode
from msgspec.structs import replace

from aios_broker.contract.errors import InvalidConfig
from aios_broker.contract.money import pico_per_token
from aios_broker.contract.names import Module, Name, Row

CoreName = Annotated[
    str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")
]
Kind = Literal["llama", "sglang", "openai", "simulated"]
# exact: a generation that was suspended goes on id for id. same-context: it sees exactly the ids
# so far, and may choose another next one.
Grade = Literal["exact", "same-context"]
# How an endpoint goes on with an unfinished assistant message; none: it cannot. auto: found out.
Prefill = Literal["auto", "none", "assistant", "continue_final_message", "prefix"]
_Limit = Annotated[float, Meta(gt=0.0, le=86_400.0)]  # s
_Money = Annotated[float, Meta(ge=0.0, le=10_000.0)]  # six digits behind the point at most
_Count = Annotated[int, Meta(ge=0)]
_Speed = Annotated[float, Meta(ge=0.0)]  # tokens/s; 0: as fast as this computer can
_VariableName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z")]


class _Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A table of the file."""


class Price(_Settings, frozen=True):
    """Money per million tokens, as its owner entered it: the kernel ships none as truth."""

    input: _Money = 0.0
    output: _Money = 0.0
    cached_input: _Money | None = None  # None: as `input`
    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z")] = "USD"


class RateLimits(_Settings, frozen=True):
    """Of the account behind a core, kept over all workers of the fleet. 0: none."""

    requests_per_minute: _Count = 0
    tokens_per_minute: _Count = 0
    account: Name | None = None  # cores that name the same one share its limits; None: the core's


class CoreSettings(_Settings, frozen=True, kw_only=True, tag_field="kind"):
    """What every core has."""

    slots: Annotated[int, Meta(ge=1, le=1024)] = 2  # generations at once, per worker
    workers: Annotated[int, Meta(ge=0, le=64)] = 1  # processes that `aios up` starts for it
    context_tokens: Annotated[int, Meta(ge=256)] | None = None  # None: what the model has
    aliases: Annotated[Row[Name], Meta(max_length=64)] = ()  # other names that lead here
    default: bool = False  # takes what names no core
    fallback: Annotated[Row[CoreName], Meta(max_length=16)] = ()  # who goes on where it fails
    price: Price | None = None
    limits: RateLimits = field(default_factory=RateLimits)
    # Tenants reuse the contexts that others have had read, and their usage says how much that was.
    share_kv: bool = False


class LlamaSettings(CoreSettings, frozen=True, kw_only=True, tag="llama"):
    """llama.cpp in a process of the worker's."""

    gguf: str | None = None  # a file; None: the small model of the package
    # None: the processors less one, at most 8 (docs/decisions/0023).
    threads: Annotated[int, Meta(ge=1, le=256)] | None = None
    gpu_layers: _Count = 0  # refused where the build has no GPU
    grade: Grade = "exact"


class SGLangSettings(CoreSettings, frozen=True, kw_only=True, tag="sglang"):
    """SGLang's native interface: a server at `url`, or one that the worker starts with `model`."""

    url: str | None = None
    model: str | None = None
    tokenizer: str | None = None  # a folder, or `bytes`; None: the server's
    python: str | None = None  # that has sglang; None: the worker's own
    flags: Annotated[Row[str], Meta(max_length=256)] = ()
    log: str | None = None
    api_key_env: _VariableName | None = None
    api_key_file: str | None = None
    start_limit_s: _Limit = 600.0
    first_token_limit_s: _Limit = 120.0
    stall_limit_s: _Limit = 30.0


class OpenAISettings(CoreSettings, frozen=True, kw_only=True, tag="openai"):
    """An OpenAI-compatible endpoint: a hosted API, vLLM, Ollama, llama.cpp's server, LiteLLM."""

    url: str  # up to and with /v1
    model: str  # its name there
    api_key_env: _VariableName | None = None
    api_key_file: str | None = None
    prefill: Prefill = "auto"
    keeps: Annotated[Row[Name], Meta(max_length=16)] = ()  # more sampling options that it knows
    connect_limit_s: _Limit = 10.0
    first_token_limit_s: _Limit = 120.0
    stall_limit_s: _Limit = 60.0


class SimulatedSettings(CoreSettings, frozen=True, kw_only=True, tag="simulated"):
    """The deterministic core of tests and simulations."""

    model: str = "simulated"
    seed: _Count = 0
    prefill_tokens_per_s: _Speed = 0.0
    decode_tokens_per_s: _Speed = 0.0
    kv_tokens: _Count = 65_536
    end_probability: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.02


_OF_ITS_CARD = ("workers", "aliases", "default", "fallback", "price", "limits")

Core = LlamaSettings | SGLangSettings | OpenAISettings | SimulatedSettings


def process_version(core: Core) -> str:
    """Return what a worker has to be started anew for, where it changes.

    What only its card says, and how many of them there are, is not in it.
    """
    usual = CoreSettings()
    rest = {setting: getattr(usual, setting) for setting in _OF_ITS_CARD}
    return encode(replace(core, **rest)).decode()


def kind_of(core: CoreSettings) -> str:
    """Return what kind a core is; empty: of none that a file has."""
    return str(core.__struct_config__.tag or "")


def key_variable(core: Core) -> str | None:
    """Return the variable that holds the key of a core's endpoint, if one does."""
    return core.api_key_env if isinstance(core, SGLangSettings | OpenAISettings) else None


class CoreCard(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the fleet knows of a core: its workers register it, and it stays when they are gone.

    By these cards a syscall finds its run queue. Fields of a newer release are read past.
    """

    name: Name
    model: Name  # what its weights are: cores of one model stand for each other
    kind: str = ""
    snapshot_model: str = ""  # where it is the same a suspended generation goes on
    aliases: Row[Name] = ()
    default: bool = False
    fallback: Row[Name] = ()
    slots: int = 1  # of one worker
    context_tokens: int = 0  # 0: not known
    preemptible: bool = True
    source: str = ""  # who describes it: a file of a host; who does takes it away as well
    report: dict[str, str] = field(default_factory=dict)  # what a person is told of it
    generates: bool = True  # False: it makes embeddings alone
    keeps_kv: bool = False  # the next call of a program is cheaper where its last one ran
    limits: RateLimits = field(default_factory=RateLimits)
    currency: str = ""  # of its price; empty: it has none


def queue_of(module: Module, core: str = "") -> str:
    """Return the name of a run queue: the module's own, or that of one of its cores."""
    return f"{module}.{core}" if core else module


def check_core(name: str, core: Core) -> None:
    """Refuse a core that cannot work, whichever others there are.

    Raises:
        InvalidConfig: a price that cannot be counted exactly, an address that is none, two places
            for one key; `field` names the core and the setting.
    """
    for setting in ("input", "output", "cached_input") if core.price is not None else ():
        try:
            pico_per_token(getattr(core.price, setting) or 0.0)
        except InvalidConfig as error:
            error.field = f"cores.{name}.price.{setting}"
            raise
    if not isinstance(core, SGLangSettings | OpenAISettings):
        return
    if core.url is None and core.model is None:
        raise _refused(name, "url", "it has neither a server nor a model", "name one of them")
    if core.url is not None:
        _check_url(name, core.url)
    if core.api_key_env is not None and core.api_key_file is not None:
        raise _refused(name, "api_key_file", "api_key_env is there too", "take one of them out")


def _check_url(name: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _ = parts.port  # raises where it is no number
    except ValueError:
        is_address = False
    if not is_address or not url.isprintable() or " " in url:
        raise _refused(
            name, "url", f"{url!r} is not the address of an HTTP server", "begin it with https://"
        )
    if "@" in parts.netloc:
        raise _refused(
            name,
            "url",
            "holds a name or a password",
            "put the key where api_key_env or api_key_file says",
        )


def check_cores(cores: Mapping[str, Core], others: Container[str] = ()) -> None:
    """Refuse cores that contradict each other.

    Args:
        cores: All that are well by themselves.
        others: Names that are taken, too: of cores that are not.

    Raises:
        InvalidConfig: an alias that is a core's name, a fallback that is unknown or comes back to
            where it began, two defaults, prices in two currencies; `field` names the core.
    """
    _check_aliases(cores, others)
    _check_currency(cores)
    for name, core in cores.items():
        for other in core.fallback:
            if other not in cores and other not in others:
                raise _refused(
                    name,
                    "fallback",
                    f"names {other!r}, and there is no such core",
                    f"use of {', '.join(sorted(cores))}",
                )
        if circle := _circle(cores, name):
            raise _refused(
                name,
                "fallback",
                f"comes back to itself: {' -> '.join(circle)}",
                "let the chain end somewhere",
            )
    defaults = [name for name, core in cores.items() if core.default]
    if len(defaults) > 1:
        raise _refused(
            defaults[1], "default", f"{defaults[0]!r} is the default already", "let one of them be"
        )


def _check_aliases(cores: Mapping[str, Core], others: Container[str]) -> None:
    for name, core in cores.items():
        for alias in core.aliases:
            if alias in cores or alias in others:
                raise _refused(name, "aliases", f"{alias!r} is a core's own name", "use another")


def _check_currency(cores: Mapping[str, Core]) -> None:
    """A syscall may cost something on several cores: sums are of one currency."""
    first: tuple[str, str] | None = None
    for name, core in cores.items():
        if core.price is None:
            continue
        currency = core.price.currency
        if first is not None and currency != first[1]:
            raise _refused(
                name,
                "price.currency",
                f"is {currency}, and {first[0]!r} is paid in {first[1]}",
                "give all prices in one currency",
            )
        first = first or (name, currency)


def _circle(cores: Mapping[str, Core], start: str) -> Sequence[str]:
    """Return the way by which a chain of fallbacks leads back to its start; nothing: none does."""

    def search(name: str, way: tuple[str, ...]) -> Sequence[str]:
        for other in _known(cores, cores[name].fallback):
            if other == start:
                return (*way, other)
            if other not in way and (found := search(other, (*way, other))):
                return found
        return ()

    return search(start, (start,))


def _known(cores: Mapping[str, Core], names: Iterable[str]) -> Iterable[str]:
    return (name for name in names if name in cores)


def _refused(name: str, setting: str, why: str, remedy: str) -> InvalidConfig:
    return InvalidConfig(why, field=f"cores.{name}.{setting}", remedy=remedy)
