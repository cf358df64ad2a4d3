-- turns.lua: what the scheduler sees of a run queue whose owners take turns (policy rr).
--
-- Whose jobs are live is noted in the field `flow` of the policy: '' nobody's, the metadata of one whose
-- program has them all, or SEVERAL. submit.lua keeps it, and begins it anew with the first that comes when
-- nothing is live. Where one program has all, its jobs stand in their order already.

local function is_shared(c)
    local flow = call('HGET', c.policy, 'flow')
    local is_idle = call('EXISTS', c.live) == 0
    if not flow or flow ~= '' and is_idle then
        flow = is_idle and '' or SEVERAL
        call('HSET', c.policy, 'flow', flow)
    end
    return flow == SEVERAL
end

-- ARGV  prefix, queue, n, ms
-- Returns {how many wait, the first n ids, the last n ids}; where one program has all that is live, the last
-- id alone; where nothing waits, or the first one has waited for less than so many ms, ''.
register('turns', function(c)
    local n, least_ms = tonumber(take(c)), tonumber(take(c))
    if not is_shared(c) then return call('LINDEX', c.queue, -1) or '' end
    local first = call('LINDEX', c.queue, 0)
    if not first then return '' end
    local found = redis.pcall('HGET', job_key(c, first), 'aios_ready_ms')
    if type(found) == 'string' and c.now - found < least_ms then return '' end
    return {call('LLEN', c.queue), call('LRANGE', c.queue, 0, n - 1), call('LRANGE', c.queue, -n, -1)}
end)

-- ARGV  prefix, queue, id...
-- Returns the metadata of each ('': a stock producer's); 0: it is gone.
register('owners', function(c)
    local rows = {}
    while c.at <= #c.args do
        local f = redis.pcall('HMGET', job_key(c, take(c)), 'aios_metadata', 'status')
        rows[#rows + 1] = not f.err and f[2] and (f[1] or '') or 0
    end
    return rows
end, {'no-writes'})
