-- nice.lua: change the nice value of jobs. Their score goes; the scheduler gives a new one.
--
-- ARGV  prefix, module, nice, id...
-- Returns per job done | ended | unknown.

register('nice', function(c)
    local nice = take(c)
    return for_each(c, function(id)
        redis.call('HSET', job_key(c, id), 'aios_nice', nice)
        redis.call('ZREM', c.scores, id)
    end)
end)
