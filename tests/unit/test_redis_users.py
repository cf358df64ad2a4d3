"""Redis' users: names, passwords, addresses and rules, before any server sees them."""

import hashlib
import re

import pytest

from aios_broker.contract.errors import InvalidConfig
from aios_broker.queues.functions import LIBRARY, library_source
from aios_broker.queues.keys import Keys
from aios_broker.queues.users import (
    ROLES,
    Role,
    acl_file,
    acl_rules,
    functions_of,
    secret_of,
    url_as,
    user_name,
    user_password,
)
from aios_broker.redis.address import parse_url
from aios_workers.modules.memory.block import memory_source

SECRET = "s3cr3t"
KEYS = Keys()


@pytest.mark.parametrize("prefix", ["rq", "{a}:rq", "x/y@z:1", "a?b#c%d"])
@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cr3t@host:1/2",
        "rediss://default:s3cr3t@a:1,b:2,c:3/0",
        "unix://:s3cr3t@/run/redis.sock?db=3",
    ],
)
def test_an_address_leads_to_the_same_servers_as_another_user(url: str, prefix: str) -> None:
    keys = Keys(prefix)
    as_worker = parse_url(url_as(url, "worker", keys))

    assert [(at.host, at.port, at.path, at.db, at.tls) for at in as_worker] == [
        (at.host, at.port, at.path, at.db, at.tls) for at in parse_url(url)
    ]
    assert {(at.username, at.password) for at in as_worker} == {
        (f"{prefix}.worker", user_password(SECRET, "worker", keys))
    }
    assert SECRET not in url_as(url, "worker", keys)


@pytest.mark.parametrize("url", ["redis://host:1/0", "unix:///run/redis.sock", "redis://ada@host"])
def test_an_address_without_a_password_has_no_users(url: str) -> None:
    assert secret_of(url) is None


def test_each_user_of_each_deployment_has_a_password_of_its_own() -> None:
    made = {
        user_password(secret, role, Keys(prefix))
        for secret in (SECRET, "another")
        for role in ROLES
        for prefix in ("rq", "{a}:rq")
    }
    assert len(made) == 2 * len(ROLES) * 2


def test_the_file_of_users_has_no_password_but_what_it_is_known_by() -> None:
    text = acl_file(SECRET, KEYS)
    passwords = [SECRET, *(user_password(SECRET, role, KEYS) for role in ROLES)]

    assert [password for password in passwords if password in text] == []
    digests = re.findall(r"#([0-9a-f]{64})\b", text)
    assert digests == [hashlib.sha256(password.encode()).hexdigest() for password in passwords]
    names = ["default", *(user_name(role, KEYS) for role in ROLES)]
    assert [line.split(" ")[1] for line in text.splitlines()] == names


def test_a_prefix_is_no_pattern() -> None:
    rules = acl_rules("client", SECRET, Keys(r"a*[b]?\c"))
    patterns = [rule for rule in rules if "~" in rule]
    assert patterns
    assert all(r"~a\*\[b\]\?\\c:" in rule for rule in patterns)


def test_a_prefix_that_no_file_of_users_can_hold_is_refused() -> None:
    with pytest.raises(InvalidConfig) as caught:
        acl_rules("worker", SECRET, Keys("my app"))
    assert caught.value.field == "RQ_KEY_PREFIX"


def test_every_function_is_known_by_its_file() -> None:
    folders = ("client", "operator", "scheduler", "shared", "worker")
    registered = set(re.findall(r"^\s*register\('(\w+)'", library_source(), re.MULTILINE))
    assert frozenset().union(*map(functions_of, folders)) == registered
    assert functions_of("client") >= functions_of("client/submit") == {"submit"}
    assert functions_of("operator/cancel") == {"cancel"}


@pytest.mark.parametrize("role", ["scheduler", "worker"])
def test_the_fleets_users_may_run_what_the_functions_run(role: Role) -> None:
    """They all run with their caller's rights, those of memory's library too."""
    source = library_source() + memory_source()
    commands = set(re.findall(r"(?:call|variadic|read_many)\('([A-Z]+)'", source))
    assert {"HSET", "ZPOPMIN", "XADD"} <= commands
    rules = acl_rules(role, SECRET, KEYS)
    assert [one for one in sorted(commands) if f"+{one.lower()}" not in rules] == []


@pytest.mark.parametrize("role", ["api", "client"])
def test_who_is_not_of_the_fleet_may_call_the_functions_that_are_named(role: Role) -> None:
    rules = acl_rules(role, SECRET, KEYS)
    assert "+fcall" not in rules
    assert f"+fcall|{LIBRARY}_submit" in rules
    forbidden = functions_of("worker") - functions_of("worker/context")
    forbidden |= functions_of("scheduler")
    assert [name for name in forbidden if f"+fcall|{LIBRARY}_{name}" in rules] == []
