-- reclaim.lua: put back the jobs whose lease ran out: their worker died. Those that lost too
-- many workers are quarantined: failed, and never run again. A worker that renewed its leases
-- less than a lease ago is alive and does not know of the job (the answer to its claim was lost
-- with a connection): that counts as no loss.
--
-- ARGV  prefix, module, epoch, error body (JSON), limit
-- Returns how many leases were taken back; 0 also when the epoch is over.

local function put_back(c, id, attempt, member, losses)
    local metadata, tokens, ran_ms, core, pico, currency, origin = unpack(redis.call('HMGET', job_key(c, id),
        'aios_metadata', 'aios_tokens', 'aios_ran_ms', 'aios_core', 'aios_cost', 'aios_currency', 'origin'))
    local at = home(c, origin)
    local job = job_key(c, id)
    redis.call('ZREM', c.leases, member)
    redis.call('ZREM', at.wip, member)
    forget_told(c, id)
    redis.call('HSET', job, 'status', 'queued', 'worker_name', '', 'aios_losses', losses,
        'aios_ready_ms', c.now, 'aios_ahead', attempt) -- see move.lua
    redis.call('HINCRBY', job, 'aios_slices', 1)
    redis.call('LPUSH', at.queue, id)
    quota.moved(c, metadata or nil, 'r', 'q', id)
    note(c, 'reclaim', id, attempt, '', quota.used(tokens, ran_ms, core, pico, currency))
end

local function is_alive(c, worker)
    if not worker or worker == '' then return false end
    local seen_ms, lease_ms = unpack(redis.call('HMGET', worker_key(c, worker), 'aios_seen_ms',
        'aios_lease_ms'))
    return c.now - count(seen_ms) < count(lease_ms)
end

register('reclaim', function(c)
    local epoch, body, limit = take(c), take(c), tonumber(take(c))
    if not leads(c, epoch) then return 0 end
    local max_losses = tonumber(redis.call('HGET', c.policy, 'max_losses') or '3')
    local members = redis.call('ZRANGEBYSCORE', c.leases, '-inf', c.now, 'LIMIT', 0, limit)
    local taken = #members
    for _, member in ipairs(members) do
        local id, attempt = string.match(member, '^(.*):(%d+)$')
        local status, current, losses, worker = unpack(redis.pcall('HMGET', job_key(c, id),
            'status', 'aios_attempt', 'aios_losses', 'worker_name')) -- an error has nothing to unpack
        losses = count(losses) + (is_alive(c, worker) and 0 or 1)
        if not status or current ~= attempt then
            redis.call('ZREM', c.leases, member) -- its job was deleted; reconcile answers
            for _, at in ipairs(all_queues(c)) do redis.call('ZREM', at.wip, member) end
        elseif status == 'canceled' then
            taken = taken - 1 -- by a stock tool: reconcile answers, by this lease
        elseif losses >= max_losses then
            terminate(c, id, 'fail', 'failed', body, iso_of(c.now))
            redis.call('ZADD', c.quarantine, c.now, id)
        else
            put_back(c, id, attempt, member, losses)
        end
    end
    return taken
end)
