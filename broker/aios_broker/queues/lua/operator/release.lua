-- release.lua: put held jobs back into the run queue.
--
-- ARGV  prefix, module, id...
-- Returns per job done | ended | unknown. One that runs or is parked and was to be held is not.

local function release(c, id)
    local job = job_key(c, id)
    redis.call('HDEL', c.control, id)
    if redis.call('ZREM', c.held, id) == 0 then return end
    local at = home(c, redis.call('HGET', job, 'origin'))
    redis.call('ZREM', at.deferred, id)
    if redis.call('HGET', job, 'status') ~= 'deferred' then return end -- a stock tool enqueued it
    redis.call('HSET', job, 'status', 'queued', 'aios_ready_ms', c.now)
    redis.call('RPUSH', at.queue, id)
    note(c, 'release', id, redis.call('HGET', job, 'aios_attempt') or '0', '', '')
end

register('release', function(c)
    return for_each(c, function(id) release(c, id) end)
end)
