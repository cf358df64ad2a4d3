-- expire.lua: end the jobs whose deadline has passed, waiting, running, held or parked, and delete the
-- records of those that finished long enough ago, and the bodies of too many that failed.
--
-- ARGV  prefix, module, epoch, error body (JSON), limit
-- Returns how many were ended; 0 also when the epoch is over.

register('expire', function(c)
    local epoch, body, limit = take(c), take(c), tonumber(take(c))
    if not leads(c, epoch) then return 0 end
    local ids = redis.call('ZRANGEBYSCORE', c.deadlines, '-inf', c.now, 'LIMIT', 0, limit)
    for _, id in ipairs(ids) do
        if redis.call('HEXISTS', c.live, id) == 1 then
            terminate(c, id, 'fail', 'failed', body, iso_of(c.now))
        else
            redis.call('ZREM', c.deadlines, id)
        end
    end
    for _, at in ipairs(all_queues(c)) do sweep_ended(c, at, SWEPT_BY_EXPIRE) end
    failures.sweep(c)
    return #ids
end)
