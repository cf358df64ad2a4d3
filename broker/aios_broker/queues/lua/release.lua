-- release.lua: put held jobs back into the run queue.
--
-- ARGV  prefix, module, id...
-- Returns per job done | ended | unknown. One that runs or is parked and was to be held is not.

register('release', function(c)
    local answer = {}
    while c.at <= #c.args do
        local id = take(c)
        local job = job_key(c, id)
        if redis.call('HEXISTS', c.live, id) == 1 then
            redis.call('HDEL', c.control, id)
            local held = redis.call('ZREM', c.held, id) == 1
            if held then redis.call('ZREM', c.deferred, id) end
            if held and redis.call('HGET', job, 'status') == 'deferred' then -- else a stock tool did
                redis.call('HSET', job, 'status', 'queued', 'aios_ready_ms', c.now)
                redis.call('RPUSH', c.queue, id)
                note(c, 'release', id, redis.call('HGET', job, 'aios_attempt') or '0', '', '')
            end
            answer[#answer + 1] = 'done'
        else
            answer[#answer + 1] = redis.call('EXISTS', job) == 1 and 'ended' or 'unknown'
        end
    end
    write_journal(c)
    return answer
end)
