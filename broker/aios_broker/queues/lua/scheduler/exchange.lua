-- exchange.lua: put a long queue in order a little at a time, by exchanging jobs in pairs.
--
-- ARGV  prefix, queue, epoch, shift, n, then n times: place, id, other place, other id
-- Places count from the head as it was when the caller began to read; `shift` is by how many the
-- head has moved since, as far as the caller knows. A pair is exchanged only where both jobs are
-- found at their places, or near them; any other has moved meanwhile and is left alone.
-- Returns {exchanged, shift as of now}, or 0 when the epoch is over (nothing is changed).

local REACH = 64 -- how far from its place a job is looked for

local function found_at(c, shift, place, id)
    local at = place - shift.by
    if at >= 0 and redis.call('LINDEX', c.queue, at) == id then return at end
    local from = math.max(0, at - REACH)
    for i, other in ipairs(redis.call('LRANGE', c.queue, from, math.max(0, at + REACH))) do
        if other == id then
            shift.by = place - (from + i - 1)
            return from + i - 1
        end
    end
end

register('exchange', function(c)
    local epoch, shift, done = take(c), {by = tonumber(take(c))}, 0
    if not leads(c, epoch) then return 0 end
    for _ = 1, tonumber(take(c)) do
        local place, id, other_place, other = tonumber(take(c)), take(c), tonumber(take(c)), take(c)
        local at = found_at(c, shift, place, id)
        local other_at = at and found_at(c, shift, other_place, other)
        if other_at then
            redis.call('LSET', c.queue, at, other)
            redis.call('LSET', c.queue, other_at, id)
            done = done + 1
        end
    end
    return {done, shift.by}
end)
