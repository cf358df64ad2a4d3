-- reorder.lua: put jobs at the head of the run queue, in this order, with their scores.
--
-- ARGV  prefix, module, epoch, then per job: id, score
-- Ids that do not wait any more are left out; all others keep their order behind.
-- Returns 1, or 0 when the epoch is over (nothing is changed).

register('reorder', function(c)
    local epoch = take(c)
    if not leads(c, epoch) then return 0 end
    local waiting, named, order, scores = {}, {}, {}, {}
    local ids = redis.call('LRANGE', c.queue, 0, -1)
    for _, id in ipairs(ids) do waiting[id] = true end
    while c.at <= #c.args do
        local id, score = take(c), take(c)
        if waiting[id] and not named[id] then
            named[id] = true
            order[#order + 1] = id
            scores[#scores + 1] = score
            scores[#scores + 1] = id
        end
    end
    for _, id in ipairs(ids) do
        if not named[id] then order[#order + 1] = id end
    end
    if #order == 0 then return 1 end
    variadic('ZADD', c.scores, scores)
    redis.call('DEL', c.queue)
    variadic('RPUSH', c.queue, order)
    return 1
end)
