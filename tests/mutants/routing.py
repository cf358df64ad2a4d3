"""The mutants of routing: which core takes what, and what moves to another one."""

from tests.mutants.catalogue import Mutant

LUA = "broker/aios_broker/queues/lua/"
TEST = "tests/integration/test_routing.py"
MOVE_TEST = "tests/integration/test_moving.py"

ROUTING_MUTANTS = (
    Mutant(
        "a job that moved stands in two queues",
        LUA + "scheduler/move.lua",
        "            drop_places(at.queue, places)\n",
        "",
        MOVE_TEST,
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
        "    put_in(c, target.queue, job.id, pass)\n",
        "    put_in(c, target.queue, job.id, pass)\n    call('HSET', c.live, job.id, '')\n",
        MOVE_TEST,
    ),
    Mutant(
        "what is new goes to a core that was removed",
        LUA + "shared/routes.lua",
        "call('HDEL', c.cards, name)",
        "local _ = 0",
        MOVE_TEST,
    ),
    Mutant(
        "what has run goes on where its snapshot does not",
        LUA + "scheduler/move.lua",
        "(not job.begun or routes.snapshot_model(c, name) == pass.model)",
        "true",
        MOVE_TEST,
    ),
    Mutant(
        "a fallback comes back to whoever gave it away",
        LUA + "scheduler/move.lua",
        "not string.find(' ' .. job.tried .. ' ', ' ' .. name .. ' ', 1, true)",
        "true",
        MOVE_TEST,
    ),
    Mutant(
        "what was read by somebody begins anew elsewhere",
        LUA + "scheduler/move.lua",
        "count(f[6]) > 0 or f[7] or",
        "count(f[6]) > 0 or",
        MOVE_TEST,
    ),
    Mutant(
        "one without a token stays with its dead core's model",
        LUA + "scheduler/move.lua",
        "local begun = f[3] and (",
        "local begun = f[3] and f[3] ~= '0' or (",
        MOVE_TEST,
    ),
    Mutant(
        "what moves goes behind all others",
        LUA + "scheduler/move.lua",
        "call('LINSERT', queue, 'BEFORE', next_, id)",
        "call('RPUSH', queue, id)",
        MOVE_TEST,
    ),
    Mutant(
        "what its dead worker was at loses its place",
        LUA + "scheduler/reclaim.lua",
        ", 'aios_ahead', attempt)",
        ")",
        MOVE_TEST,
    ),
    Mutant(
        "a move leaves no trace",
        LUA + "scheduler/move.lua",
        "    note(c, 'move', job.id, job.attempt, '', pass.core .. ' ' .. to)\n",
        "",
        MOVE_TEST,
    ),
    Mutant(
        "a dead end is one, chain or not",
        LUA + "scheduler/move.lua",
        "    return next_of_chain(c, job, pass)\n",
        "    return nil\n",
        MOVE_TEST,
    ),
    Mutant(
        "who named a core itself leaves it by its chain",
        LUA + "scheduler/move.lua",
        "if best or pass.why == 'busy' or job.tried == '' then return best end",
        "if best or pass.why == 'busy' then return best end",
        MOVE_TEST,
    ),
    Mutant(
        "a removed core's worker goes on without a card",
        "broker/aios_broker/queues/module_queue.py",
        "*((cards, core) for core in card.core_names),",
        "",
        MOVE_TEST,
    ),
    Mutant(
        "a stock job's name is forgotten",
        LUA + "shared/routes.lua",
        "        call('HSETNX', job, 'aios_needs', 'core:' .. name)\n",
        "",
        MOVE_TEST,
    ),
    Mutant(
        "a file that is away for a moment stops all cores",
        "broker/aios_local/supervisor/cores.py",
        "if unsure != (stamp,) and self._stops_somebody(found):",
        "if False:",
        "tests/unit/test_cores_watch.py",
    ),
    Mutant(
        "a key of a wrong entry is everybody's",
        "broker/aios_local/supervisor/cores.py",
        "        self._keys |= found.key_variables\n",
        "        self._keys |= {getattr(c, 'api_key_env', '') for c in found.cores.values()}\n",
        "tests/unit/test_cores_watch.py",
    ),
    Mutant(
        "limits are those of the start",
        "broker/aios_broker/queues/rate_limits.py",
        "        self._limits = limits\n",
        "        first = limits()\n        self._limits = lambda: first\n",
        "tests/integration/test_rate_limits.py",
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
