-- renew.lua: renew all leases of a worker, and its heartbeat, in one call every third of a lease.
--
-- ARGV  prefix, module, worker, now (ISO), lease_ms, cores, n, then per job: id, attempt
--
-- Returns per job go | hold | lost. Jobs that live to see a renewal get an RQ execution record, by
-- which RQ's stop-execution command finds their worker; the shorter ones are not worth it. The
-- index `worker:<name>:executions` stays away: with it rq-dashboard (0.9) reads the current job's
-- data as a pickle, whatever serializer it was given, and its page of workers answers 500.

local function show_executions(c, worker, members, lease_ms)
    for _, member in ipairs(members) do
        local id, attempt = string.match(member, '^(.*):(%d+)$')
        local key = c.p .. ':execution:' .. member
        redis.call('HSET', key, 'id', attempt, 'job_id', id, 'worker_name', worker,
            'created_at', c.now / 1000, 'last_heartbeat', c.now / 1000)
        redis.call('PEXPIRE', key, lease_ms)
    end
end

register('renew', function(c)
    local worker, iso, lease_ms, cores = take(c), take(c), tonumber(take(c)), take(c)
    local n, members, ids, verdicts, kept, renewed = tonumber(take(c)), {}, {}, {}, {}, {}
    for i = 1, n do
        ids[i] = take(c)
        members[i] = ids[i] .. ':' .. take(c)
    end
    local leases, wishes = held_leases(c, members), read_many('HMGET', c.control, ids)
    for i, member in ipairs(members) do
        if leases[i] then
            renewed[#renewed + 1] = c.now + lease_ms
            renewed[#renewed + 1] = member
            kept[#kept + 1] = member
            verdicts[i] = wishes[i] and 'hold' or 'go'
        else
            verdicts[i] = 'lost'
        end
    end
    variadic('ZADD', c.leases, renewed)
    local key = worker_key(c, worker)
    redis.call('HSET', key, 'last_heartbeat', iso, 'state', n > 0 and 'busy' or 'idle',
        'aios_seen_ms', c.now, 'aios_lease_ms', lease_ms)
    redis.call('EXPIRE', key, WORKER_TTL_S)
    for core in string.gmatch(cores, '[^,]+') do redis.call('HSET', c.cores, core, c.now) end
    show_executions(c, worker, kept, lease_ms)
    return verdicts
end)
