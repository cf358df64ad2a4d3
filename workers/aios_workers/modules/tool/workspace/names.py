"""Which names of files in a session's folder storage can have; pure."""

from aios_broker.contract.errors import InvalidPath
from aios_broker.contract.paths import normal_path
from aios_broker.contract.printable import INVISIBLE


def refusal_of_name(path: str) -> str:
    """Return why storage has no such path; empty: it has, and by this very name.

    `path`: within the folder, as the system gives it.
    """
    try:
        normal = normal_path(f"/{path}")
    except InvalidPath as error:
        return error.message
    if normal != f"/{path}":
        return "its name is not in Unicode's form NFC"
    return ""


def shown_path(path: str) -> str:
    """Return a path as it can be told: what is no printable text is escaped."""
    is_text = path.isprintable() and not INVISIBLE.search(path)
    return f"/{path}" if is_text else f"/{ascii(path)[1:-1]}"
