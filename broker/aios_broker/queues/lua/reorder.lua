-- reorder.lua: put jobs at the head of the run queue, in this order, with their scores.
--
-- ARGV  prefix, module, epoch, head, tail, n, then n times: id, score of the jobs to put in order;
--       then id, score of jobs that get their score and stay where they are
-- head, tail: the ids to order are looked for among that many at either end of the list, and what
-- lies between is not touched: what a step costs in a long queue. head 0: the whole list.
-- Ids that do not wait any more are left out; all others keep their order behind.
-- Returns 1, or 0 when the epoch is over (nothing is changed).

-- Take the ends out of the list: what stood before the middle, and what stood behind it.
local function cut_ends(c, head, tail)
    if head == 0 or redis.call('LLEN', c.queue) <= head + tail then
        local all = redis.call('LRANGE', c.queue, 0, -1)
        redis.call('DEL', c.queue)
        return all, {}
    end
    local before, behind = redis.call('LPOP', c.queue, head), {}
    local backwards = tail > 0 and redis.call('RPOP', c.queue, tail) or {}
    for i = #backwards, 1, -1 do behind[#behind + 1] = backwards[i] end
    return before, behind
end

local function without(ids, named)
    local rest = {}
    for _, id in ipairs(ids) do
        if not named[id] then rest[#rest + 1] = id end
    end
    return rest
end

local function push_front(c, ids)
    local backwards = {}
    for i = #ids, 1, -1 do backwards[#backwards + 1] = ids[i] end
    variadic('LPUSH', c.queue, backwards)
end

local function put_in_order(c, head, tail, n, scores)
    if n == 0 then return end
    local waiting, named, order = {}, {}, {}
    local before, behind = cut_ends(c, head, tail)
    for _, id in ipairs(before) do waiting[id] = true end
    for _, id in ipairs(behind) do waiting[id] = true end
    for _ = 1, n do
        local id, score = take(c), take(c)
        if waiting[id] and not named[id] then
            named[id] = true
            order[#order + 1] = id
            scores[#scores + 1] = score
            scores[#scores + 1] = id
        end
    end
    push_front(c, without(before, named))
    push_front(c, order)
    variadic('RPUSH', c.queue, without(behind, named))
end

register('reorder', function(c)
    local epoch, scores = take(c), {}
    if not leads(c, epoch) then return 0 end
    put_in_order(c, tonumber(take(c)), tonumber(take(c)), tonumber(take(c)), scores)
    while c.at <= #c.args do
        local id, score = take(c), take(c)
        if redis.call('HEXISTS', c.live, id) == 1 then
            scores[#scores + 1] = score
            scores[#scores + 1] = id
        end
    end
    variadic('ZADD', c.scores, scores)
    return 1
end)
