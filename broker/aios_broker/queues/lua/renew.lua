-- renew.lua: renew all leases of a worker, and its heartbeat, in one call every third of a lease.
--
-- ARGV  prefix, module, worker, now (ISO), lease_ms, cores, n, then per job: id, attempt
--
-- Returns per job go | hold | lost. Jobs that live to see a renewal are shown to RQ's tools as
-- the worker's current executions; the shorter ones are not worth the commands.

local function show_executions(c, worker, iso, members)
    local set = worker_key(c, worker) .. ':executions'
    redis.call('DEL', set)
    for _, member in ipairs(members) do
        local id, attempt = string.match(member, '^(.*):(%d+)$')
        local key = c.p .. ':execution:' .. member
        redis.call('HSET', key, 'id', attempt, 'job_id', id, 'worker_name', worker,
            'created_at', c.now / 1000, 'last_heartbeat', c.now / 1000)
        redis.call('EXPIRE', key, 15)
        redis.call('SADD', set, member)
    end
    if #members > 0 then redis.call('EXPIRE', set, 15) end
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
    redis.call('HSET', key, 'last_heartbeat', iso, 'state', n > 0 and 'busy' or 'idle')
    redis.call('EXPIRE', key, WORKER_TTL_S)
    for core in string.gmatch(cores, '[^,]+') do redis.call('HSET', c.cores, core, c.now) end
    show_executions(c, worker, iso, kept)
    return verdicts
end)
