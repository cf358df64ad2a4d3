"""The mutants of who may do what in Redis."""

from tests.mutants.catalogue import Mutant

USERS = "broker/aios_broker/queues/users.py"
TRIED = "tests/integration/test_redis_users.py::test_what_a_user_may_not_do"
UNIT = "tests/unit/test_redis_users.py"

REDIS_USER_MUTANTS = (
    Mutant(
        "a prefix is a pattern",
        USERS,
        'prefix = _GLOB.sub(r"\\\\\\1", keys.prefix)',
        "prefix = keys.prefix",
        UNIT,
    ),
    Mutant(
        "all users have one password",
        USERS,
        'told = f"aios redis user {user_name(role, keys)}".encode()',
        'told = b"aios redis user"',
        UNIT,
    ),
    Mutant(
        "a client may call whatever operators may",
        USERS,
        'steps=("client/submit", "client/attach", "operator/look", "operator/cancel"),',
        'steps=("client", "operator", "shared"),',
        TRIED,
    ),
    Mutant(
        "the API writes all keys",
        USERS,
        "writes=(*JOBS, *CALLS, *SETTINGS, *LINKS, *ANSWERS),",
        'writes=("*",),',
        TRIED,
    ),
    Mutant(
        "an inspector tidies everything",
        USERS,
        "reads=OF_RQ, tidies=REGISTRIES),",
        'reads=OF_RQ, tidies=("*",)),',
        TRIED,
    ),
)
