"""The mutants of what stock RQ tools remove while workers tell of it."""

from tests.mutants.catalogue import Mutant

_REMOVED = "tests/integration/test_removed_while_running.py"

RQ_MUTANTS = (
    Mutant(
        "rq: a job that yields is queued though it was removed",
        "broker/aios_broker/queues/lua/worker/suspend.lua",
        "held and not is_removed(c, job.id) and 1 or 0",
        "held and 1 or 0",
        _REMOVED,
    ),
    Mutant(
        "rq: a job that was removed finishes all the same",
        "broker/aios_broker/queues/lua/worker/finish.lua",
        "held and not is_removed(c, job.id) and 1 or 0",
        "held and 1 or 0",
        _REMOVED,
    ),
    Mutant(
        "rq: the slice of a removed job goes on",
        "broker/aios_broker/queues/lua/worker/slice.lua",
        "            if removed then",
        "            if false then",
        _REMOVED,
    ),
    Mutant(
        "rq: a job that was cancelled is put back when its worker dies",
        "broker/aios_broker/queues/lua/scheduler/reclaim.lua",
        "status == 'canceled' then",
        "false then",
        _REMOVED,
    ),
    Mutant(
        "rq: text of a deleted job leaves a part of a record",
        "broker/aios_broker/queues/lua/worker/emit.lua",
        "call('UNLINK', key)",
        "call('EXISTS', key)",
        _REMOVED,
    ),
    Mutant(
        "rq: a living name is given to a second worker",
        "broker/aios_broker/queues/lua/worker/register.lua",
        "if other then return other end",
        "",
        "tests/integration/test_stock_rq_races.py",
    ),
    Mutant(
        "redis: a port without TLS is waited for",
        "broker/aios_local/supervisor/redis_check.py",
        'return await reader.read(1) in (b"+", b"-")',
        "return False",
        "tests/integration/test_redis_check.py",
    ),
    Mutant(
        "redis: keys that are dropped are none of the doctor's business",
        "broker/aios_local/supervisor/redis_check.py",
        "if policy != KEEPS_ALL:",
        "if policy == 'none':",
        "tests/integration/test_redis_check.py",
    ),
)
