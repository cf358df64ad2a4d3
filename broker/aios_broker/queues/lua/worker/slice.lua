-- slice.lua: a slice has ended: charge it, keep the checkpoint, renew the lease, and say whether
-- somebody more deserving waits for the slot.
--
-- ARGV  prefix, module, a ClaimRow (only its lease_ms and cores count), n, n SliceRows
--
-- One whose owner has used up its minute makes way for whoever waits and may run, whatever the policy;
-- where nobody does, it goes on.
-- Returns per job go | suspend | hold | lost.

local HEAD = 16 -- waiting jobs that are looked at for one that this worker can run

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

-- Each waiting job can take one slot only: the others that were told to suspend a moment ago count.
local function must_suspend(c, running, preempt, cores)
    local id, over = running.id, quota.is_over(c, running.metadata)
    if preempt == 'none' and not over then return false end
    local waiting, first = runnable(c, cores, running)
    if waiting == 0 or redis.call('EXISTS', c.p .. ':suspended') == 1 then return false end
    local suspending = routes.own(c, cores).suspending
    redis.call('ZREMRANGEBYSCORE', suspending, '-inf', c.now - SUSPENDING_MS)
    local room = waiting < HEAD and waiting or waiting_for(c, cores)
    local told = redis.call('ZCARD', suspending) - (redis.call('ZSCORE', suspending, id) and 1 or 0)
    if told >= room then return false end
    return over or preempt == 'waiting' or outranked(c, id, first)
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
            keep_snapshot(c, job.id, job.checkpoint)
            redis.call('ZADD', c.leases, 'XX', c.now + claim.lease_ms, job.member)
            if wishes[i] then
                verdicts[i] = 'hold'
            elseif must_suspend(c, running, preempt, cores) then
                redis.call('ZADD', routes.own(c, cores).suspending, c.now, job.id)
                verdicts[i] = 'suspend'
            else
                verdicts[i] = 'go'
            end
        end
    end
    return verdicts
end)
