-- unpark.lua: put parked jobs back into the run queue, to its head: they have waited for a person, and
-- are to look what was decided: their record says so from now on, whoever claims them, however often. One
-- that an operator wants held is held from now on.
--
-- ARGV  prefix, module, id...
-- Returns per job done | elsewhere (it is not parked: it runs still, or waits already) | ended | unknown.

local function unpark(c, id)
    local job = job_key(c, id)
    if redis.call('ZREM', c.parked, id) == 0 then return 'elsewhere' end
    local status, attempt, origin = unpack(redis.call('HMGET', job, 'status', 'aios_attempt', 'origin'))
    local at = home(c, origin)
    if status ~= 'deferred' then -- a stock tool enqueued it
        redis.call('ZREM', at.deferred, id)
        return 'elsewhere'
    end
    note(c, 'unpark', id, attempt or '0', '', '')
    redis.call('HSET', job, 'aios_decided', '1')
    if redis.call('HGET', c.control, id) == 'hold' then
        redis.call('HDEL', c.control, id)
        redis.call('ZADD', c.held, c.now, id)
        note(c, 'hold', id, attempt or '0', '', '')
    else
        redis.call('ZREM', at.deferred, id)
        redis.call('HSET', job, 'status', 'queued', 'aios_ready_ms', c.now)
        redis.call('LPUSH', at.queue, id)
    end
    return 'done'
end

register('unpark', function(c)
    return for_each(c, function(id) return unpark(c, id) end)
end)
