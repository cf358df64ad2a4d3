"""What a request says of itself beside its question: its program, how urgent it is, its deadline.

The token alone says who the agent is; these are labels inside of it. The program is the first of:
the header `X-AIOS-Program`, the field `metadata.program`, what the route knows (the program of a
response that is gone on with), the session headers that coding agents send, and else `main`.

A program that another one began stands under it: `parent/child`. What is before the first `/` is
its tree.
"""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.names import Name
from aios_broker.contract.syscall import DEFAULT_DEADLINE_S, MAX_DEADLINE_S

PROGRAM_HEADER = "x-aios-program"
PARENT_HEADER = "x-aios-parent-program"
NICE_HEADER = "x-aios-nice"
DEADLINE_HEADER = "x-aios-deadline-s"
KEY_HEADER = "idempotency-key"
MAIN = "main"
MAX_NAME_LENGTH = 128
MAX_KEY_LENGTH = 256
MOST_SESSIONS = 10_000  # whose places in their trees are remembered
_ODD = re.compile(r"[^A-Za-z0-9._:@-]")
NICE = range(-20, 20)


@dataclass(frozen=True, slots=True)
class Labels:
    """What a request says of itself."""

    program: str = MAIN
    nice: int = 0
    deadline_s: float = DEFAULT_DEADLINE_S
    key: str | None = None  # of idempotency


@dataclass(frozen=True, slots=True)
class _Session:
    """A session of a coding agent, and the one that began it."""

    name: str
    parent: str = ""
    root: str = ""  # in which names are unique; empty: everywhere


class Trees:
    """Where the sessions of coding agents stand, as far as they were seen.

    They name their parent and not its parents: the place of one whose grandparent matters is what
    was seen of its parent. One that is not remembered stands right under the parent it names.
    """

    def __init__(self) -> None:
        self._places: OrderedDict[tuple[str, str], str] = OrderedDict()

    def place(self, whose: str, name: str, parent: str = "", root: str = "") -> str:
        """Return the program of a session.

        Args:
            whose: The agent, so that no other one's sessions are met.
            name: Of the session.
            parent: The session that began it.
            root: The session that both belong to, where their names mean something in it alone.
        """
        known = f"{whose} {root}"
        if parent and parent != name:
            above = root if parent == root else self._places.get((known, parent))
            place = under(above or (under(root, parent) if root else parent), name)
        else:
            place = self._places.get((known, name), name)
        self._places[known, name] = place
        self._places.move_to_end((known, name))
        if len(self._places) > MOST_SESSIONS:
            self._places.popitem(last=False)
        return place


def labels_of(
    headers: Mapping[str, str],
    trees: Trees,
    whose: str,
    *,
    metadata: Mapping[str, object] | None = None,
    known_program: str | None = None,
    priority: int | None = None,
) -> Labels:
    """Return the labels of a request.

    Args:
        headers: Names in small letters.
        trees: What is known of sessions.
        whose: The tenant and agent that the token is of.
        metadata: The request's field of that name.
        known_program: What the route knows, where nothing of these says it.
        priority: The request's field of that name: a nice value, where no header has one.

    Raises:
        InvalidSyscall: a program's name that none can have, a nice value or a time out of range.
    """
    program = (
        _named(headers, metadata or {})
        or known_program
        or _of_session(headers, trees, whose)
        or MAIN
    )
    return Labels(
        program=program,
        nice=_nice(headers, priority),
        deadline_s=_deadline_s(headers),
        key=_key(headers),
    )


def under(parent: str, child: str) -> str:
    """Return the name of a program that another one began; its tree stays what it is."""
    name = f"{parent}/{child}"
    if len(name) <= MAX_NAME_LENGTH:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=12).hexdigest()
    return f"{parent.partition('/')[0][: MAX_NAME_LENGTH - 25]}/{digest}"


def _named(headers: Mapping[str, str], metadata: Mapping[str, object]) -> str | None:
    program = _checked(headers.get(PROGRAM_HEADER), PROGRAM_HEADER)
    parent = _checked(headers.get(PARENT_HEADER), PARENT_HEADER)
    if program is None:
        program = _checked(metadata.get("program"), "metadata.program")
        parent = parent or _checked(metadata.get("parent_program"), "metadata.parent_program")
    if program is None or parent is None or program.startswith(f"{parent}/"):
        return program
    return under(parent, program)


def _checked(name: object, field: str) -> str | None:
    if name is None or name == "":
        return None
    try:
        return msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise InvalidSyscall(
            f"this names no program: {error}",
            field=field,
            remedy="use 1 to 128 letters, digits and . _ : @ / -",
        ) from error


def _of_session(headers: Mapping[str, str], trees: Trees, whose: str) -> str | None:
    session = _session(headers)
    if session is None:
        return None
    return trees.place(whose, session.name, session.parent, session.root)


def _session(headers: Mapping[str, str]) -> _Session | None:
    """Return the session that a coding agent names, in the headers of the one that it is."""
    if root := _word(headers.get("x-claude-code-session-id")):
        agent = _word(headers.get("x-claude-code-agent-id"))
        parent = _word(headers.get("x-claude-code-parent-agent-id"))
        return _Session(agent, parent or root, root) if agent else _Session(root)
    if name := _word(headers.get("x-session-id")):
        return _Session(name, _word(headers.get("x-parent-session-id")))
    if name := _word(headers.get("session-id") or headers.get("session_id")):
        return _Session(name)
    return None


def _word(value: str | None) -> str:
    """Return the name of a session; what cannot be part of a program's name becomes a digest."""
    if not value:
        return ""
    if len(value) <= 64 and not _ODD.search(value):
        return value
    return hashlib.blake2b(value.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def _nice(headers: Mapping[str, str], priority: int | None) -> int:
    given = headers.get(NICE_HEADER)
    if given is None:
        field, text = "priority", str(priority or 0)
    else:
        field, text = NICE_HEADER, given.strip()
    if re.fullmatch(r"[+-]?[0-9]{1,3}", text) and int(text) in NICE:
        return int(text)
    raise InvalidSyscall(
        "this is no nice value", field=field, remedy="give a whole number from -20 to 19"
    )


def _deadline_s(headers: Mapping[str, str]) -> float:
    given = headers.get(DEADLINE_HEADER)
    if given is None:
        return DEFAULT_DEADLINE_S
    text = given.strip()
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) and 0 < float(text) <= MAX_DEADLINE_S:
        return float(text)
    raise InvalidSyscall(
        "this is no time",
        field=DEADLINE_HEADER,
        remedy=f"give seconds, more than 0 and at most {MAX_DEADLINE_S:g}",
    )


def _key(headers: Mapping[str, str]) -> str | None:
    key = headers.get(KEY_HEADER)
    if key is None:
        return None
    if key and len(key) <= MAX_KEY_LENGTH:
        return key
    raise InvalidSyscall(
        "this is no key",
        field=KEY_HEADER,
        remedy=f"give 1 to {MAX_KEY_LENGTH} characters that name this step of your program",
    )
