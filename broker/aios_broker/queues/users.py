"""Redis' users by ACL: what each kind of process may do there, as far as ACLs reach.

A function's commands run with its caller's rights: who may submit has the commands and the keys
that submitting needs, by hand, too. So these users are no borders between agents; what they are,
and what they are not: docs/decisions/0037-redis-users.md.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, get_args
from urllib.parse import quote, urlsplit, urlunsplit

from aios_broker.contract.errors import InvalidConfig
from aios_broker.queues.functions import LIBRARY, STEPS
from aios_broker.queues.keys import Keys
from aios_broker.redis.address import parse_url

Role = Literal["scheduler", "worker", "api", "client", "inspector"]
ROLES: tuple[Role, ...] = get_args(Role)

# What connections say of themselves, and what tells nothing of others.
GREETING = (
    *("auth", "hello", "ping", "select", "quit", "reset", "time", "info"),
    *("client|getname", "client|id", "client|setinfo", "client|setname"),
    *("discard", "exec", "multi", "unwatch", "watch"),
)
READING = (
    *("exists", "get", "getrange", "mget", "pttl", "strlen", "ttl", "type"),
    *("hexists", "hget", "hgetall", "hkeys", "hlen", "hmget", "hscan", "hstrlen"),
    *("lindex", "llen", "lpos", "lrange"),
    *("scard", "sismember", "smembers", "smismember", "srandmember", "sscan"),
    *("xinfo|stream", "xlen", "xrange", "xread", "xrevrange"),
    *("zcard", "zcount", "zlexcount", "zmscore", "zrange", "zrangebylex", "zrangebyscore"),
    *("zrank", "zrevrange", "zrevrangebyscore", "zscan", "zscore"),
)
# Of the steps; and of stock RQ, that enqueues, works, and changes what it shows.
WRITING = (
    *("decrby", "del", "expire", "getdel", "incr", "incrby", "persist", "pexpire", "pexpireat"),
    *("rename", "set", "setex", "setnx", "setrange", "unlink"),
    *("hdel", "hincrby", "hincrbyfloat", "hset", "hsetnx"),
    *(
        "blmove",
        "blmpop",
        "blpop",
        "linsert",
        "lmove",
        "lmpop",
        "lpop",
        "lpush",
        "lrem",
        "lset",
        "ltrim",
    ),
    *("rpop", "rpush", "sadd", "spop", "srem", "xadd"),
    *("zadd", "zpopmin", "zrem", "zremrangebyrank", "zremrangebyscore"),
)
HEARING = ("publish", "subscribe", "unsubscribe")

REGISTRIES = tuple(
    f"{name}:*"
    for name in ("wip", "finished", "failed", "canceled", "deferred", "scheduled", "ready")
)
# Keys by name below the prefix: RQ's own, and `aios:` ours. What no pattern names is read alone.
JOBS = (
    *("queues", "queue:*", "job:*", "results:*", "execution*"),
    *REGISTRIES,
)
# What submitting, and ending what was submitted, change: the last, since a job may hold anything.
CALLS = (
    *(f"aios:{name}:*" for name in ("live", "leases", "deadlines", "scores", "held", "parked")),
    *(f"aios:{name}:*" for name in ("control", "suspects", "suspending", "ended", "ghosts", "far")),
    *(f"aios:{name}:*" for name in ("holders", "owed", "barred", "quarantine", "memories")),
    *(f"aios:{name}:*" for name in ("use", "used", "counted", "load", "recount", "recounted")),
    *(f"aios:{name}:*" for name in ("bucket", "spent", "rate", "touched", "ranked", "marks")),
    *("aios:failures:*", "aios:failed_bytes:*"),
    *("aios:slot", "aios:journal", "aios:last_core:*", "aios:reply:*", "aios:core_workers"),
    "aios:policy:*",  # beside the policy stands whose turn it is, which a submission may change
    *("aios:answer:*", "aios:reasoning:*"),
    *("aios:snapshot:*", "aios:snapshots", "aios:snapshot_bytes", "aios:snapshot_total"),
)
# What an operator sets: limits, suspensions, which cores there are.
SETTINGS = (
    *("aios:quota:*", "aios:resources:*", "aios:stopped"),
    *("aios:core_cards", "aios:core_removed", "aios:core_served", "aios:core_looked"),
)
# Links that log in to the page: whoever redeems one deletes it.
LINKS = ("aios:page_link:*",)
# Answers that the gateway keeps for agents, and the contexts that it ends with them.
ANSWERS = (
    *("aios:responses:*", "aios:response_order:*", "aios:response_context:*"),
    *("aios:response_next:*", "aios:response_count:*"),
    *("aios:context:*", "aios:context-op:*", "aios:contexts:*", "aios:context_ends:*"),
)
# What RQ's tools read: no conversation's text but what stands in a job's record.
OF_RQ = (*JOBS, "rl-*", "worker:*", "workers*", "suspended", "clean_registries:*")


@dataclass(frozen=True, slots=True)
class Rights:
    """What a user may do. Patterns are of keys below the prefix."""

    commands: tuple[str, ...]
    steps: tuple[str, ...] = ()  # files or folders of `lua/` whose functions it may call; `*`: any
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()  # reads them, too
    tidies: tuple[str, ...] = ()  # registries of RQ's, whose old entries every `rq info` removes
    hears: bool = False  # the channels on which workers take commands


RIGHTS: dict[Role, Rights] = {
    "scheduler": Rights(
        (*GREETING, *READING, *WRITING, *HEARING, "xtrim", "bgrewriteaof", "function|load"),
        steps=("*",),
        writes=("*",),
        hears=True,
    ),
    "worker": Rights(
        (*GREETING, *READING, *WRITING, *HEARING, "function|load", "client|list"),
        steps=("*",),
        writes=("*",),
        hears=True,
    ),
    "api": Rights(
        (*GREETING, *READING, *WRITING, *HEARING),
        steps=("client", "operator", "shared", "worker/context"),
        reads=("*",),
        writes=(*JOBS, *CALLS, *SETTINGS, *LINKS, *ANSWERS),
        hears=True,
    ),
    "client": Rights(
        (*GREETING, *READING, *WRITING, "publish"),
        steps=("client/submit", "client/attach", "operator/look", "operator/cancel"),
        reads=("*",),
        writes=(*JOBS, *CALLS),
        hears=True,
    ),
    "inspector": Rights((*GREETING, *READING), reads=OF_RQ, tidies=REGISTRIES),
}

_REGISTERED = re.compile(r"^\s*register\('(\w+)'", re.MULTILINE)
_GLOB = re.compile(r"([\[\]*?\\])")
_BLANK = re.compile(r"\s")


def user_name(role: Role, keys: Keys) -> str:
    """Return the name of a role's user: its deployment's, others on that server have their own."""
    return f"{keys.prefix}.{role}"


def user_password(secret: str, role: Role, keys: Keys) -> str:
    """Return a user's password: who knows one of them knows neither another nor the secret."""
    told = f"aios redis user {user_name(role, keys)}".encode()
    return hmac.new(secret.encode(), told, hashlib.sha256).hexdigest()


def url_as(url: str, role: Role, keys: Keys) -> str:
    """Return the address of a Redis as a user has it, from the one of whoever made the user."""
    secret = secret_of(url)
    assert secret is not None, "without a password there are no users"
    parts = urlsplit(url)
    places = parts.netloc.rpartition("@")[2]
    credentials = f"{quote(user_name(role, keys), safe='')}:{user_password(secret, role, keys)}"
    return urlunsplit(parts._replace(netloc=f"{credentials}@{places}"))


def secret_of(url: str) -> str | None:
    """Return the password of an address; None: it has none."""
    return parse_url(url)[0].password or None


def acl_rules(role: Role, secret: str, keys: Keys) -> tuple[str, ...]:
    """Return what ACL SETUSER is told of a user: whatever it was before, it is this then.

    Raises:
        InvalidConfig: the prefix has blanks, which no file of users can hold.
    """
    if _BLANK.search(keys.prefix):
        raise InvalidConfig(
            f"the prefix {keys.prefix!r} has a blank, and Redis' users cannot be told of it",
            field="RQ_KEY_PREFIX",
            remedy="leave the blank out, or set AIOS_REDIS_USERS=shared",
        )
    rights = RIGHTS[role]
    prefix = _GLOB.sub(r"\\\1", keys.prefix)
    password = user_password(secret, role, keys)
    return (
        *("reset", "on", f"#{hashlib.sha256(password.encode()).hexdigest()}"),
        *(f"+{command}" for command in rights.commands),
        *(f"+{command}" for command in _calls(rights.steps)),
        *(f"%R~{prefix}:{pattern}" for pattern in rights.reads),
        *(f"~{prefix}:{pattern}" for pattern in rights.writes),
        *((f"&{prefix}:pubsub:*",) if rights.hears else ()),
        *_selector(f"~{prefix}:{pattern}" for pattern in rights.tidies),
    )


def acl_file(secret: str, keys: Keys) -> str:
    """Return a file of users for a server's `aclfile`: who has the secret may do everything."""
    digest = hashlib.sha256(secret.encode()).hexdigest()
    lines = [f"user default reset on #{digest} ~* &* +@all"]
    lines += [
        f"user {user_name(role, keys)} {' '.join(acl_rules(role, secret, keys))}" for role in ROLES
    ]
    return "\n".join(lines) + "\n"


def functions_of(folder: str) -> frozenset[str]:
    """Return the names, without the library's, of the functions of a file or a folder of `lua/`."""
    return _functions().get(folder, frozenset())


@cache
def _functions() -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for step in STEPS:
        source = (files("aios_broker.queues") / "lua" / f"{step}.lua").read_text()
        names = frozenset(_REGISTERED.findall(source))
        folder = step.partition("/")[0]
        found[step] = names
        found[folder] = found.get(folder, frozenset()) | names
    return found


def _selector(patterns: Iterable[str]) -> list[str]:
    """Return what allows one command on some keys, beside all else."""
    keys = " ".join(patterns)
    return [f"(+zremrangebyscore {keys})"] if keys else []


def _calls(steps: Iterable[str]) -> list[str]:
    """Return the commands that call the functions of these files, one for each."""
    if "*" in steps:
        return ["fcall", "fcall_ro"]
    names = {name for step in steps for name in functions_of(step)}
    return [f"fcall|{LIBRARY}_{name}" for name in sorted(names)]
