-- slice.lua: a slice has ended: charge it, keep the checkpoint, renew the lease, and say whether
-- somebody more deserving waits for the slot.
--
-- ARGV  prefix, module, worker, want (unused), lease_ms, cores, n, then per job:
--       id, attempt, ran_ms, tokens (both since the last charge), checkpoint ('' keeps the last)
--
-- Returns per job go | yield | hold | lost.

local HEAD = 16 -- waiting jobs that are looked at for one that this worker can run

-- The first waiting jobs that this worker can run: how many (up to HEAD), and the first one's id.
local function runnable(c, cores)
    local ids, n, first = redis.call('LRANGE', c.queue, 0, HEAD - 1), 0, nil
    for _, id in ipairs(ids) do
        if serves(cores, redis.call('HGET', job_key(c, id), 'aios_core')) then
            n = n + 1
            first = first or id
        end
    end
    return n, first
end

local function outranked(c, id, first)
    local head = redis.call('ZSCORE', c.scores, first)
    local mine = redis.call('ZSCORE', c.scores, id)
    return head and mine and tonumber(head) < tonumber(mine)
end

-- Each waiting job can take one slot only: those told to yield a moment ago count.
local function must_yield(c, id, preempt, cores)
    if preempt == 'none' then return false end
    local waiting, first = runnable(c, cores)
    if waiting == 0 or redis.call('EXISTS', c.p .. ':suspended') == 1 then return false end
    redis.call('ZREMRANGEBYSCORE', c.yielding, '-inf', c.now - YIELDING_MS)
    local room = redis.call('LLEN', c.queue)
    if waiting < HEAD then room = waiting end
    if redis.call('ZCARD', c.yielding) >= room then return false end
    return preempt == 'waiting' or outranked(c, id, first)
end

local function charge(c, id, ran_ms, tokens)
    local f = redis.call('HMGET', job_key(c, id), 'aios_ran_ms', 'aios_tokens')
    redis.call('HSET', job_key(c, id), 'aios_ran_ms', count(f[1]) + ran_ms,
        'aios_tokens', count(f[2]) + tokens)
end

register('slice', function(c)
    take(c); take(c)
    local lease_ms, cores = tonumber(take(c)), ',' .. take(c) .. ','
    local n, jobs, members, ids, verdicts = tonumber(take(c)), {}, {}, {}, {}
    for i = 1, n do
        local job = {id = take(c), attempt = take(c), ran_ms = tonumber(take(c)),
            tokens = tonumber(take(c)), checkpoint = take(c)}
        jobs[i], members[i], ids[i] = job, job.id .. ':' .. job.attempt, job.id
    end
    local leases, wishes = held_leases(c, members), read_many('HMGET', c.control, ids)
    local preempt = redis.call('HGET', c.policy, 'preempt') or 'waiting'
    for i, job in ipairs(jobs) do
        if not leases[i] then
            verdicts[i] = 'lost'
        else
            charge(c, job.id, job.ran_ms, job.tokens)
            keep_snapshot(c, job.id, job.checkpoint)
            redis.call('ZADD', c.leases, 'XX', c.now + lease_ms, members[i])
            if wishes[i] then
                verdicts[i] = 'hold'
            elseif must_yield(c, job.id, preempt, cores) then
                redis.call('ZADD', c.yielding, c.now, job.id)
                verdicts[i] = 'yield'
            else
                verdicts[i] = 'go'
            end
        end
    end
    return verdicts
end)
