-- lead.lua: take or renew the scheduler's lease. A new holder gets the next epoch, which fences
-- every change the old one may still send. Epochs begin at the time: a Redis that lost its data
-- never gives one out again, and its leader notices.
--
-- ARGV  prefix, module, holder, lease_ms
-- Returns {epoch, leading (0 | 1), now_ms}.

register('lead', function(c)
    local holder, lease_ms = take(c), tonumber(take(c))
    local current, epoch, until_ms = unpack(redis.call('HMGET', c.scheduler, 'holder', 'epoch', 'until'))
    epoch = tonumber(epoch) or c.now
    if current ~= holder then
        if current and count(until_ms) > c.now then return {epoch, 0, c.now} end
        epoch = epoch + 1
    end
    redis.call('HSET', c.scheduler, 'holder', holder, 'epoch', epoch, 'until', c.now + lease_ms)
    return {epoch, 1, c.now}
end)
