-- reorder.lua: put jobs at the head of the run queue, in this order, and keep scores.
--
-- ARGV  prefix, queue, epoch, head, tail, middle, n, m, the n ids to put in order, m times: id, score, basis of a
--       job that waits or runs; then, of a policy that watches (see watch.lua):
--         'ranked', id, subject    it has a score from now on, by which its subject's use counted
--         'gone', id, subject      it is no more
--         'mark', subject, number  what the policy remembers of it
--         'seen', subject, times   all its jobs are ranked by what was so when its counters had
--                                  moved so many times
-- head, tail: the ids to order are looked for among that many at either end of the list, and what
-- lies between is not touched, up to `middle` of them aside, which are searched for: what a step costs
-- in a long queue. head 0: the whole list.
-- basis: the nice value and the time since which it waits that its score was made of ('': of neither). A job of
-- which they have changed since gets no score: the one made is of what was, and nothing would make another.
-- Ids that do not wait any more are left out; all others keep their order behind.
-- Returns the ids to order that wait and were not found: they have moved further since they were seen.
-- Where the epoch is over, 0, and nothing is changed.

-- Take the head out of the list, or all of it where both ends would be most of it. Returns what was
-- taken, and the ids among the last `tail`, which stay where they are.
local function cut_head(c, head, tail)
    if head == 0 or call('LLEN', c.queue) <= head + tail then
        local all = call('LRANGE', c.queue, 0, -1)
        call('DEL', c.queue)
        return all, {}
    end
    return call('LPOP', c.queue, head), tail > 0 and call('LRANGE', c.queue, -tail, -1) or {}
end

-- Put jobs at the head, what else was taken from there behind them. Those that stood at the tail
-- leave it: each is found within the last `tail` entries.
local function put_at_head(c, order, taken, named, from_tail)
    for i = #from_tail, 1, -1 do call('LREM', c.queue, -1, from_tail[i]) end
    local backwards = {}
    for i = #taken, 1, -1 do
        if not named[taken[i]] then backwards[#backwards + 1] = taken[i] end
    end
    for i = #order, 1, -1 do backwards[#backwards + 1] = order[i] end
    variadic('LPUSH', c.queue, backwards)
end

local function waits(c, id)
    local f = redis.pcall('HMGET', job_key(c, id), 'status', 'origin')
    return not f.err and f[1] == 'queued' and f[2] == c.name
end

local function note_score(c, scores, id, score, basis)
    if call('HEXISTS', c.live, id) == 0 then return end
    if basis ~= '' then
        local f = redis.pcall('HMGET', job_key(c, id), 'aios_nice', 'aios_ready_ms')
        if f.err or not f[2] then return end -- a stock tool has deleted it
        if (f[1] or '') .. ' ' .. f[2] ~= basis then return end
    end
    scores[#scores + 1] = score
    scores[#scores + 1] = id
end

local function put_in_order(c, head, tail, middle, n)
    if n == 0 then return {} end
    local lost = {}
    local place, named, order, from_tail = {}, {}, {}, {}
    local taken, last = cut_head(c, head, tail)
    for _, id in ipairs(last) do place[id] = 'tail' end
    for _, id in ipairs(taken) do place[id] = 'head' end
    for _ = 1, n do
        local id = take(c)
        if not place[id] and middle > 0 then
            middle = middle - 1
            place[id] = call('LREM', c.queue, 1, id) == 1 and 'middle'
        end
        if place[id] and not named[id] then
            named[id] = true
            order[#order + 1] = id
            if place[id] == 'tail' then from_tail[#from_tail + 1] = id end
        elseif not place[id] and waits(c, id) then
            lost[#lost + 1] = id
        end
    end
    put_at_head(c, order, taken, named, from_tail)
    return lost
end

local KEPT = {
    ranked = function(c, id, subject) call('ZADD', c.ranked, 0, subject .. '\t' .. id) end,
    gone = function(c, id, subject) call('ZREM', c.ranked, subject .. '\t' .. id) end,
    mark = function(c, subject, number) call('HSET', c.marks, subject, number) end,
    seen = function(c, subject, times)
        if call('HGET', c.touched, subject) == times then call('HDEL', c.touched, subject) end
    end,
}

register('reorder', function(c)
    local epoch = take(c)
    if not leads(c, epoch) then return 0 end
    local head, tail, middle, n, m = tonumber(take(c)), tonumber(take(c)), tonumber(take(c)),
        tonumber(take(c)), tonumber(take(c))
    local lost = put_in_order(c, head, tail, middle, n)
    local scores = {}
    for _ = 1, m do note_score(c, scores, take(c), take(c), take(c)) end
    variadic('ZADD', c.scores, scores)
    while c.at <= #c.args do KEPT[take(c)](c, take(c), take(c)) end
    return lost
end)
