-- slice.lua: a slice has ended: charge it, keep the checkpoint, renew the lease, and say whether
-- somebody more deserving waits for the slot.
--
-- ARGV  prefix, module, a ClaimRow (only its lease_ms and cores count), n, n SliceRows
--
-- One whose owner has used up its minute makes way for whoever waits and may run, whatever the policy;
-- where nobody does, it goes on.
-- Cutting must pay: a slice shorter than its least_ms goes on, and where the contexts that are begun do
-- not fit the memory of the queue's cores, one shorter than its crowded_ms, unless the score of whoever
-- waits says otherwise. A job keeps the numbers of the last cut that was due and not made, in aios_uncut:
-- `attempt: slice_ms resume_ms least_ms contexts fits`. Operators' wishes and quotas do not ask for that.
-- Returns per job go | suspend | hold | lost.

local HEAD = 16 -- waiting jobs that are looked at for one that this worker can run
local MEMORY_MS = 30000 -- for so long a worker's word about its core's memory holds
local SNAPSHOTS = 256   -- that are looked at for contexts that are begun and wait

-- The first waiting jobs that are admitted here in the place of one that runs, with what it has: how
-- many (up to HEAD), and the first one's id.
local function runnable(c, cores, running)
    local n, first = 0, nil
    for _, at in ipairs(routes.serving(c, cores)) do
        for _, id in ipairs(redis.call('LRANGE', at.queue, 0, LOOKAHEAD - 1)) do
            local job = admission.read_waiting(c, id)
            if job and admission.admits(c, job, ',' .. cores .. ',', running) then
                n = n + 1
                first = first or id
                if n == HEAD then return n, first end
            end
        end
    end
    return n, first
end

-- How many wait in the queues that this worker takes from.
local function waiting_for(c, cores)
    local sum = 0
    for _, at in ipairs(routes.serving(c, cores)) do sum = sum + redis.call('LLEN', at.queue) end
    return sum
end

local function outranked(c, id, first)
    local head = redis.call('ZSCORE', c.scores, first)
    local mine = redis.call('ZSCORE', c.scores, id)
    return head and mine and tonumber(head) < tonumber(mine)
end

-- How many contexts are begun, those included that are about to take the places of others: `told`, of
-- which `first` is the next. Counts no further than to more than fit.
local function contexts_begun(c, own, first, told, fits)
    local n = redis.call('ZCARD', own.wip) + told + 1 -- and those of the module's own queue, wherever they run
    if own.core ~= '' then n = n + redis.call('ZCARD', home(c).wip) end
    if redis.call('HEXISTS', c.snapshot_bytes, first) == 1 then n = n - 1 end
    for _, id in ipairs(redis.call('ZREVRANGE', c.snapshots, 0, SNAPSHOTS - 1)) do
        if n > fits then break end
        local status, origin = unpack(redis.call('HMGET', job_key(c, id), 'status', 'origin'))
        if status == 'queued' and (origin == own.name or origin == c.q) then n = n + 1 end
    end
    return n
end

-- How many fit the memory of all workers of this core; 0: they do not say.
local function contexts_that_fit(c, own, job)
    if job.fits == '0' then return 0 end
    redis.call('HSET', own.memories, job.memory, job.fits .. ' ' .. c.now)
    redis.call('PEXPIRE', own.memories, MEMORY_MS)
    local sum, rows = 0, redis.call('HGETALL', own.memories)
    for i = 2, #rows, 2 do
        local fits, told_ms = string.match(rows[i], '^(%d+) (%d+)$')
        if told_ms + MEMORY_MS > c.now then sum = sum + fits end
    end
    return sum
end

local function pays(c, own, job, preempt, first, told)
    local fits = preempt == 'waiting' and contexts_that_fit(c, own, job) or 0
    local begun = fits > 0 and contexts_begun(c, own, first, told, fits) or 0
    local least_ms = begun > fits and job.crowded_ms or job.least_ms
    if tonumber(job.slice_ms) >= tonumber(least_ms) then return true end
    redis.call('HSET', job_key(c, job.id), 'aios_uncut', table.concat({job.attempt .. ':', job.slice_ms,
        job.resume_ms, least_ms, begun, fits}, ' '))
    return false
end

-- Each waiting job can take one slot only: the others that were told to suspend a moment ago count.
local function must_suspend(c, running, preempt, cores, job)
    local id, over = running.id, quota.is_over(c, running.metadata)
    if preempt == 'none' and not over then return false end
    local waiting, first = runnable(c, cores, running)
    if waiting == 0 or redis.call('EXISTS', c.p .. ':suspended') == 1 then return false end
    local own = routes.own(c, cores)
    local suspending = own.suspending
    redis.call('ZREMRANGEBYSCORE', suspending, '-inf', c.now - SUSPENDING_MS)
    local room = waiting < HEAD and waiting or waiting_for(c, cores)
    local told = redis.call('ZCARD', suspending) - (redis.call('ZSCORE', suspending, id) and 1 or 0)
    if told >= room then return false end
    if over then return true end
    return (preempt == 'waiting' or outranked(c, id, first)) and pays(c, own, job, preempt, first, told)
end

register('slice', function(c)
    local claim, verdicts = read.claim(c), {}
    local jobs, ids, leases = read_leased(c, read.slice)
    local cores, wishes = claim.cores, read_many('HMGET', c.control, ids)
    local preempt = redis.call('HGET', c.policy, 'preempt') or 'waiting'
    for i, job in ipairs(jobs) do
        if not leases[i] then
            verdicts[i] = 'lost'
        else
            local _, metadata, _, needs = quota.charge(c, job)
            local running = {id = job.id, metadata = metadata, needs = needs}
            local removed = is_removed(c, job.id)
            if not removed then keep_snapshot(c, job.id, job.checkpoint) end
            redis.call('ZADD', c.leases, 'XX', c.now + claim.lease_ms, job.member)
            if removed then
                verdicts[i] = 'lost' -- its lease is not: the scheduler answers by it
            elseif wishes[i] then
                verdicts[i] = 'hold'
            elseif must_suspend(c, running, preempt, cores, job) then
                redis.call('ZADD', routes.own(c, cores).suspending, c.now, job.id)
                verdicts[i] = 'suspend'
            else
                verdicts[i] = 'go'
            end
        end
    end
    return verdicts
end)
