-- unlist.lua: take off a long run queue what has left it, a piece at a time. Where many jobs end or are
-- held in one step, they stand anywhere in it, and to find them costs its length. So in a long one they
-- stay listed for a moment, as ghosts: a claim passes over them as over all that does not wait.
--
-- ARGV  prefix, queue, epoch, first, last, id...
-- first, last: places counted from the tail (-1 is the last), among which the ids were seen; 0, 0: they
-- were seen nowhere. One that waits again meanwhile is left alone.
-- Returns how many places were taken off; 0 also when the epoch is over.

register('unlist', function(c)
    local epoch, first, last = take(c), tonumber(take(c)), tonumber(take(c))
    if not leads(c, epoch) then return 0 end
    local ids, gone, places = {}, {}, {}
    while c.at <= #c.args do
        local id = take(c)
        ids[#ids + 1] = id
        gone[id] = status_of(c, id) ~= 'queued'
    end
    variadic('SREM', ghosts_key(c), ids)
    local length = redis.call('LLEN', c.queue)
    local from = math.max(0, length + first)
    if last < 0 then
        for i, id in ipairs(redis.call('LRANGE', c.queue, from, last)) do
            if gone[id] then places[#places + 1] = from + i - 1 end
        end
    end
    drop_places(c.queue, places)
    return #places
end)
