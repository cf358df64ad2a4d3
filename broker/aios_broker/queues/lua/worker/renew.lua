-- renew.lua: renew all leases of a worker, and its heartbeat, in one call every third of a lease.
--
-- ARGV  prefix, module, a ClaimRow (it wants none), n, n RenewalRows
--
-- Returns per job go | hold | lost. Jobs that live to see a renewal get an RQ execution record, by
-- which RQ's stop-execution command finds their worker; the shorter ones are not worth it. The
-- index `worker:<name>:executions` stays away: with it rq-dashboard (0.9) reads the current job's
-- data as a pickle, whatever serializer it was given, and its page of workers answers 500.

local function show_execution(c, worker, job, lease_ms)
    local key = c.p .. ':execution:' .. job.member
    redis.call('HSET', key, 'id', job.attempt, 'job_id', job.id, 'worker_name', worker,
        'created_at', c.now / 1000, 'last_heartbeat', c.now / 1000)
    redis.call('PEXPIRE', key, lease_ms)
    local executions = c.p .. ':executions:' .. job.id
    redis.call('ZADD', executions, math.ceil((c.now + lease_ms) / 1000), job.attempt)
    redis.call('PEXPIRE', executions, lease_ms)
end

register('renew', function(c)
    local claim, verdicts, renewed = read.claim(c), {}, {}
    local jobs, ids, leases = read_leased(c, read.renewal)
    local wishes = read_many('HMGET', c.control, ids)
    for i, job in ipairs(jobs) do
        if leases[i] then
            renewed[#renewed + 1] = c.now + claim.lease_ms
            renewed[#renewed + 1] = job.member
            show_execution(c, claim.worker, job, claim.lease_ms)
            verdicts[i] = wishes[i] and 'hold' or 'go'
        else
            verdicts[i] = 'lost'
        end
    end
    variadic('ZADD', c.leases, renewed)
    local key = worker_key(c, claim.worker)
    redis.call('HSET', key, 'last_heartbeat', claim.iso, 'state', #jobs > 0 and 'busy' or 'idle',
        'aios_seen_ms', c.now, 'aios_lease_ms', claim.lease_ms)
    redis.call('EXPIRE', key, WORKER_TTL_S)
    if claim.cores ~= '' then
        routes.keep_serving(c, claim.worker, claim.cores, claim.lease_ms, redis.call('HGET', key, 'aios_slots') or '0')
    end
    return verdicts
end)
