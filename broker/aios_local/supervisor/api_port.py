"""The port of the HTTP API: the same one at each start, so that agents keep their base URL."""

import socket
from pathlib import Path

NAME = "api-port"  # in the state directory


def api_port(state_dir: Path, host: str, wanted: int) -> int:
    """Return the port to serve the API on; 0 as `wanted`: the one of last time, if it is free."""
    if wanted:
        return wanted
    noted = state_dir / NAME
    try:
        last = int(noted.read_text(encoding="ascii"))
    except (OSError, ValueError):
        last = 0
    port = _free_port(host, last) or _free_port(host, 0)
    if port != last:
        noted.write_text(f"{port}\n", encoding="ascii")
    return port


def _free_port(host: str, port: int) -> int:
    """Return the port if nobody uses it now, else 0; port 0: any that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # What ended a moment ago still holds its port for strangers, and not for us.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return 0
        return int(probe.getsockname()[1])
