-- yield.lua: suspend running jobs: snapshot to Redis, back to the run queue, slot freed; and
-- claim the next ones.
--
-- ARGV  prefix, module, worker, now (ISO), want, lease_ms, cores, n, then per job:
--       id, attempt, reason (yield | hold | drain | park), snapshot ('' keeps the last), ran_ms, tokens,
--       prompt tokens (all three since the claim)
--
-- yield: to the tail. drain: to the head, its worker stops and it did not use up its turn.
-- park: out of the run queue, until a person has decided and it is unparked. It has used its slice up,
-- and it was not suspended: it begins anew. What an operator wants of it is kept till then.
-- hold: out of the run queue, until released. What the operator wants by now decides: one that was
-- told to yield and is to be held since is held, and one that was released meanwhile is not.
-- Returns {accepted (0 | 1) per job, leases as claim.lua}.

local function as_wished(c, job)
    if job.reason == 'park' then return 'park' end
    if redis.call('HGET', c.control, job.id) == 'hold' then return 'hold' end
    return job.reason == 'hold' and 'yield' or job.reason
end

local KEPT_OUT = {hold = 'held', park = 'parked'} -- the place of what leaves the run queue

local function suspend(c, job)
    local key = job_key(c, job.id)
    local used, metadata, known = quota.charge(c, job.id, job.attempt, job.ran_ms, job.tokens, job.prompt)
    if known then quota.moved(c, metadata, 'r', 'q', job.id) end
    local slices, suspensions = unpack(redis.call('HMGET', key, 'aios_slices', 'aios_suspensions'))
    local member, place = job.id .. ':' .. job.attempt, KEPT_OUT[job.reason]
    redis.call('ZREM', c.leases, member)
    redis.call('ZREM', c.wip, member)
    redis.call('ZREM', c.yielding, job.id)
    redis.call('ZREM', c.scores, job.id)
    if job.reason ~= 'park' then redis.call('HDEL', c.control, job.id) end
    keep_snapshot(c, job.id, job.snapshot)
    redis.call('HSET', key, 'status', place and 'deferred' or 'queued',
        'worker_name', '', 'aios_ready_ms', c.now, 'aios_slices', count(slices) + 1,
        'aios_suspensions', count(suspensions) + (job.reason == 'park' and 0 or 1))
    if place then
        redis.call('ZADD', c[place], c.now, job.id)
        redis.call('ZADD', c.deferred, WIP_SCORE, job.id)
    else
        redis.call(job.reason == 'drain' and 'LPUSH' or 'RPUSH', c.queue, job.id)
    end
    return used
end

register('yield', function(c)
    local worker, iso, want, lease_ms, cores = take(c), take(c), tonumber(take(c)), tonumber(take(c)), take(c)
    local n, jobs, members, accepted, seen = tonumber(take(c)), {}, {}, {}, {}
    for i = 1, n do
        local job = {id = take(c), attempt = take(c), reason = take(c), snapshot = take(c),
            ran_ms = tonumber(take(c)), tokens = tonumber(take(c)), prompt = tonumber(take(c))}
        jobs[i], members[i] = job, job.id .. ':' .. job.attempt
    end
    local leases = held_leases(c, members)
    for i, job in ipairs(jobs) do
        accepted[i] = leases[i] and not seen[job.id] and 1 or 0
        if accepted[i] == 1 then
            seen[job.id] = true
            job.reason = as_wished(c, job)
            note(c, KEPT_OUT[job.reason] and job.reason or 'yield', job.id, job.attempt, worker,
                suspend(c, job))
        end
    end
    local rows = lend(c, worker, iso, want, lease_ms, cores)
    return {accepted, rows}
end)
