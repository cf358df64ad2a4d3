-- lead.lua: take or renew the scheduler's lease. A new holder gets the next epoch, which fences
-- every change the old one may still send; so does the same one after its lease ran out (Redis
-- hung, or it did): what it sent before then comes too late.
--
-- ARGV  prefix, module, holder, lease_ms, the highest epoch that the caller has seen
-- A Redis that lost its data counts on from there: an epoch never comes back.
-- Returns {epoch, leading (0 | 1), now_ms, began (0 | 1: with this call)}.

register('lead', function(c)
    local holder, lease_ms, seen = take(c), tonumber(take(c)), count(take(c))
    local current, epoch, until_ms = unpack(redis.call('HMGET', c.scheduler, 'holder', 'epoch', 'until'))
    local stands = current and count(until_ms) > c.now
    local goes_on = stands and current == holder
    epoch = count(epoch)
    if stands and not goes_on then return {epoch, 0, c.now, 0} end
    if not goes_on then epoch = math.max(epoch, seen) + 1 end
    redis.call('HSET', c.scheduler, 'holder', holder, 'epoch', epoch, 'until', c.now + lease_ms)
    return {epoch, 1, c.now, goes_on and 0 or 1}
end)
