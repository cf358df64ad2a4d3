"""Agents' tokens: made by whoever asks for one, and known to the kernel by their digests alone.

A token is never queued. Whoever submits gives the kernel its digest, which is exchanged for the
agent; whoever registers an agent makes the token, and sends its digest.
"""

import hashlib
import secrets

from msgspec import Struct

TOKEN_BYTES = 32  # of randomness
PREFIX = "aios_"  # lets secret scanners and people recognise one


def new_token() -> str:
    """Return a token that is nobody's yet."""
    return PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def digest(token: str) -> str:
    """Return what the kernel keeps of a token: BLAKE2b-256 in hex."""
    return hashlib.blake2b(token.encode(errors="surrogatepass"), digest_size=32).hexdigest()


def shown_without_token(asked: Struct) -> str:
    """Return what `repr` says of what has a field `token`."""
    fields = (name for name in asked.__struct_fields__ if name != "token")
    shown = ", ".join(f"{name}={getattr(asked, name)!r}" for name in fields)
    return f"{type(asked).__name__}({shown})"
