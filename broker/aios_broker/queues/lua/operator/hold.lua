-- hold.lua: take jobs out of the run queue until they are released. A running one is told at
-- its next slice end or renewal, a parked one when it is unparked.
--
-- ARGV  prefix, module, id...
-- Returns per job done | ended | unknown.

local function hold(c, id)
    local job = job_key(c, id)
    local status, attempt, ready, origin = unpack(redis.call('HMGET', job, 'status', 'aios_attempt',
        'aios_ready_ms', 'origin'))
    local at = home(c, origin)
    if status == 'started' or (status == 'deferred' and redis.call('ZSCORE', c.parked, id)) then
        redis.call('HSET', c.control, id, 'hold')
    elseif status == 'queued' then
        leave_queues(c, id, {at})
        redis.call('ZADD', c.held, c.now, id)
        redis.call('ZADD', at.deferred, WIP_SCORE, id)
        redis.call('HINCRBY', job, 'aios_queued_ms', c.now - (tonumber(ready) or c.now))
        redis.call('HSET', job, 'status', 'deferred')
        redis.call('HSETNX', job, 'aios_attempt', 0) -- it has a past: it waited before
        note(c, 'hold', id, attempt or '0', '', '')
    end
end

register('hold', function(c)
    return for_each(c, function(id) hold(c, id) end)
end)
