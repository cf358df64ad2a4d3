-- lead.lua: take or renew the scheduler's lease. A new holder gets the next epoch, which fences
-- every change the old one may still send.
--
-- ARGV  prefix, module, holder, lease_ms
-- Returns {epoch, leading (0 | 1), now_ms, began (0 | 1: with this call)}.

register('lead', function(c)
    local holder, lease_ms = take(c), tonumber(take(c))
    local current, epoch, until_ms = unpack(redis.call('HMGET', c.scheduler, 'holder', 'epoch', 'until'))
    epoch = count(epoch)
    if current ~= holder then
        if current and count(until_ms) > c.now then return {epoch, 0, c.now, 0} end
        epoch = epoch + 1
    end
    redis.call('HSET', c.scheduler, 'holder', holder, 'epoch', epoch, 'until', c.now + lease_ms)
    return {epoch, 1, c.now, current ~= holder and 1 or 0}
end)
