"""Where the kernel is: the URL given, the environment, or the kernel that runs on this machine."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aios_broker.contract.errors import KernelNotRunning

DEFAULT_KEY_PREFIX = "rq"
RECORD_NAME = "kernel.json"  # what `aios up` writes of itself into its state directory
REMEDY = "start one with `aios up`, set AIOS_REDIS_URL, or pass url="


@dataclass(frozen=True, slots=True)
class SdkConfig:
    """The kernel to talk to."""

    url: str
    key_prefix: str = DEFAULT_KEY_PREFIX
    record_path: Path | None = None  # where the URL was read; None: somebody named it


def find_kernel(url: str | None = None, environ: Mapping[str, str] | None = None) -> SdkConfig:
    """Return the kernel to talk to: `url`, else AIOS_REDIS_URL, else the local kernel's record.

    Raises:
        KernelNotRunning: None of them names one.
    """
    variables = os.environ if environ is None else environ
    key_prefix = variables.get("RQ_KEY_PREFIX") or DEFAULT_KEY_PREFIX
    if named := url or variables.get("AIOS_REDIS_URL"):
        return SdkConfig(named, key_prefix)
    record_path = _state_dir(variables) / RECORD_NAME
    return SdkConfig(_recorded_url(record_path), key_prefix, record_path)


def _state_dir(variables: Mapping[str, str]) -> Path:
    if named := variables.get("AIOS_STATE_DIR"):
        return Path(named).expanduser()
    base = variables.get("XDG_STATE_HOME", "")
    if not base.startswith("/"):  # the XDG specification: a relative path is to be ignored
        base = f"{variables.get('HOME') or '~'}/.local/state"
    return Path(base).expanduser() / "aios"


def _recorded_url(record_path: Path) -> str:
    try:
        record = json.loads(record_path.read_bytes())
    except FileNotFoundError as error:
        raise KernelNotRunning(f"no kernel was found at {record_path}", remedy=REMEDY) from error
    except (OSError, ValueError) as error:
        raise KernelNotRunning(f"{record_path} cannot be read: {error}", remedy=REMEDY) from error
    url = record.get("redis_url") if isinstance(record, dict) else None
    if not isinstance(url, str) or not url:
        raise KernelNotRunning(f"{record_path} names no redis_url", remedy=REMEDY)
    return url
