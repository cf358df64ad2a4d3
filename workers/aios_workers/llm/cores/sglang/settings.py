"""What an SGLang core is told: whose server it uses, its name there, how long it is waited for."""

import sys
from dataclasses import dataclass
from pathlib import Path

from aios_broker.contract.errors import InvalidConfig

BYTES = "bytes"  # instead of a tokenizer's folder: one token per byte


@dataclass(frozen=True, slots=True)
class SGLangConfig:
    """An SGLang server: at `url`, where somebody else runs it, or one that the core starts."""

    url: str | None = None  # None: the core starts a server with `model`
    model: str | None = None  # what to load; with `url`: what has to be loaded there
    name: str = ""  # of the core; none: the model's, as the server says it, without folders
    tokenizer: str | None = None  # a folder, or `bytes`; None: where the server has its own
    api_key: str | None = None
    python: str = sys.executable  # the Python that has sglang
    flags: tuple[str, ...] = ()  # of our own server
    log_path: Path | None = None  # of our own server; None: among the temporary files
    slots: int = 2  # at most; never more than the server runs at once
    context_tokens: int | None = 2_048  # at most; None: what the server allows
    start_limit_s: float = 600.0  # weights of tens of gigabytes are read from a disk
    first_token_limit_s: float = 120.0  # waiting inside the server and prefill together
    stall_limit_s: float = 30.0  # between two steps
    health_limit_s: float = 15.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.url is None and self.model is None:
            raise InvalidConfig(
                "an SGLang core needs a server or a model",
                field="AIOS_SGLANG_URL",
                remedy="set AIOS_SGLANG_URL to a running server, or AIOS_SGLANG_MODEL to a model",
            )
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise InvalidConfig(
                f"{self.url!r} is not the address of an HTTP server",
                field="AIOS_SGLANG_URL",
                remedy="begin it with http:// or https://",
            )
