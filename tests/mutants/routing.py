"""The mutants of routing: which core takes what, and what moves to another one."""

from tests.mutants.catalogue import Mutant

LUA = "broker/aios_broker/queues/lua/"
TEST = "tests/integration/test_routing.py"

ROUTING_MUTANTS = (
    Mutant(
        "a job that moved stands in two queues",
        LUA + "scheduler/move.lua",
        "            drop_places(at.queue, places)\n",
        "",
        TEST,
    ),
    Mutant(
        "a claim takes a foreign core's job",
        LUA + "worker/claim.lua",
        "if job.metadata and job.home.queue ~= at.queue then return false end",
        "",
        TEST,
    ),
    Mutant(
        "a job that moved loses its clients",
        LUA + "scheduler/move.lua",
        "    call('RPUSH', target.queue, job.id)\n",
        "    call('RPUSH', target.queue, job.id)\n    call('HSET', c.live, job.id, '')\n",
        TEST,
    ),
    Mutant(
        "what is new goes to a core that was removed",
        LUA + "shared/routes.lua",
        "call('HDEL', c.cards, name)",
        "local _ = 0",
        TEST,
    ),
    Mutant(
        "what has run goes on where its snapshot does not",
        LUA + "scheduler/move.lua",
        "(job.attempt == 0 or routes.snapshot_model(c, name) == pass.model)",
        "true",
        TEST,
    ),
    Mutant(
        "a fallback comes back to whoever gave it away",
        LUA + "scheduler/move.lua",
        "not string.find(job.tried, ' ' .. name .. ' ', 1, true)",
        "true",
        TEST,
    ),
    Mutant(
        "the module's own queue starves behind a core's",
        LUA + "shared/routes.lua",
        "if since[a] ~= since[b] then return since[a] < since[b] end",
        "",
        TEST,
    ),
    Mutant(
        "a job in a foreign queue stays there",
        LUA + "scheduler/reconcile.lua",
        "        elseif not live[id] or not drop_misplaced(c, id, at) then",
        "        else",
        TEST,
    ),
    Mutant(
        "the least loaded is the most loaded",
        LUA + "shared/routes.lua",
        "if load_of(c, name) < load_of(c, best) then best = name end",
        "if load_of(c, name) > load_of(c, best) then best = name end",
        TEST,
    ),
)
