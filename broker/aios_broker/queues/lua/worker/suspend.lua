-- suspend.lua: suspend running jobs: snapshot to Redis, back to the run queue, slot freed; and
-- claim the next ones.
--
-- ARGV  prefix, module, a ClaimRow, n, n SuspensionRows (reason: suspend | hold | drain | park |
-- needs)
--
-- suspend: to the tail. drain: to the head, its worker stops and it did not use up its turn.
-- park: out of the run queue, until a person has decided and it is unparked. It has used its slice up,
-- and it was not suspended: it begins anew. What an operator wants of it is kept till then.
-- needs: what it needs is not free (needs.lua). It did nothing, and so it goes back to where it came from.
-- hold: out of the run queue, until released. What the operator wants by now decides: one that was
-- told to suspend and is to be held since is held, and one that was released meanwhile is not.
-- Returns {accepted (0 | 1) per job, leases as claim.lua}. One that a stock tool removed is left alone:
-- the scheduler answers it.

local function as_wished(c, job)
    if job.reason == 'park' then return 'park' end
    if redis.call('HGET', c.control, job.id) == 'hold' then return 'hold' end
    return job.reason == 'hold' and 'suspend' or job.reason
end

local KEPT_OUT = {hold = 'held', park = 'parked'} -- the place of what leaves the run queue

-- Behind those of the first that have waited longer: of all that wait for one lock each one comes back once.
local function put_back(c, queue, id)
    local function submitted(of) return count(redis.call('HGET', job_key(c, of), 'aios_submitted_ms')) end
    local since, ids = submitted(id), redis.call('LRANGE', queue, 0, LOOKAHEAD - 1)
    for _, other in ipairs(ids) do
        if submitted(other) > since then return redis.call('LINSERT', queue, 'BEFORE', other, id) end
    end
    if #ids < LOOKAHEAD then return redis.call('RPUSH', queue, id) end
    redis.call('LINSERT', queue, 'AFTER', ids[#ids], id)
end

-- One that is given to another core goes on there; it does not come back to whoever gave it away: the
-- worker's core, wherever it stood. Returns its queue from now on.
local function fallen_back(c, job, at, own)
    if not c.routed or job.core == '' or not routes.card(c, job.core) then return at end
    local tried, target = redis.call('HGET', job_key(c, job.id), 'aios_tried'), names(c.p, c.q .. '.' .. job.core).__index
    redis.call('HSET', job_key(c, job.id), 'origin', target.name, 'aios_tried',
        (tried and tried .. ' ' or '') .. (string.match(own.core, '.+') or string.match(at.core, '.+') or '-'))
    return target
end

local function suspend(c, job, own)
    local key = job_key(c, job.id)
    local used, metadata, known, _, _, at = quota.charge(c, job)
    if known then quota.moved(c, metadata, 'r', 'q', job.id) end
    local slices, suspensions = unpack(redis.call('HMGET', key, 'aios_slices', 'aios_suspensions'))
    local place = KEPT_OUT[job.reason]
    redis.call('ZREM', c.leases, job.member)
    for _, each in ipairs(at) do redis.call('ZREM', each.wip, job.member) end
    redis.call('ZREM', own.suspending, job.id)
    at = known and fallen_back(c, job, at[1], own) or at[1]
    redis.call('ZREM', c.scores, job.id)
    if job.reason ~= 'park' then redis.call('HDEL', c.control, job.id) end
    keep_snapshot(c, job.id, job.snapshot)
    local ran = job.reason ~= 'needs' and 1 or 0
    redis.call('HSET', key, 'status', place and 'deferred' or 'queued',
        'worker_name', '', 'aios_ready_ms', c.now, 'aios_slices', count(slices) + ran,
        'aios_suspensions', count(suspensions) + (job.reason == 'park' and 0 or ran))
    if place then
        redis.call('ZADD', c[place], c.now, job.id)
        redis.call('ZADD', at.deferred, WIP_SCORE, job.id)
    elseif job.reason == 'needs' then
        put_back(c, at.queue, job.id)
    else
        redis.call(job.reason == 'drain' and 'LPUSH' or 'RPUSH', at.queue, job.id)
        if job.reason == 'drain' then redis.call('HSET', key, 'aios_ahead', job.attempt) end -- see move.lua
    end
    return used
end

register('suspend', function(c)
    local claim, accepted, seen = read.claim(c), {}, {}
    local own = routes.own(c, claim.cores)
    local jobs, _, leases = read_leased(c, read.suspension)
    for i, job in ipairs(jobs) do
        local held = leases[i] and not seen[job.id]
        accepted[i] = held and not is_removed(c, job.id) and 1 or 0
        if held and accepted[i] == 0 then quota.charge(c, job) end
        if accepted[i] == 1 then
            seen[job.id] = true
            job.reason = as_wished(c, job)
            note(c, KEPT_OUT[job.reason] and job.reason or 'suspend', job.id, job.attempt, claim.worker,
                suspend(c, job, own))
        end
    end
    return {accepted, lend(c, claim)}
end)
