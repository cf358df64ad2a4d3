-- nice.lua: change the nice value of jobs. Their score goes; the scheduler gives a new one.
--
-- ARGV  prefix, module, nice, id...
-- Returns per job done | ended | unknown.

register('nice', function(c)
    local nice, answer = take(c), {}
    while c.at <= #c.args do
        local id = take(c)
        if redis.call('HEXISTS', c.live, id) == 1 then
            redis.call('HSET', job_key(c, id), 'aios_nice', nice)
            redis.call('ZREM', c.scores, id)
            answer[#answer + 1] = 'done'
        else
            answer[#answer + 1] = redis.call('EXISTS', job_key(c, id)) == 1 and 'ended' or 'unknown'
        end
    end
    return answer
end)
