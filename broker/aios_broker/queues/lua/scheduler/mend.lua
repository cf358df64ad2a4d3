-- mend.lua: a part of a reconciliation of a long queue, see reconcile.lua and queues/reconciliation.py.
-- The caller has read the run queue and what is live bit by bit, while both changed: what it says of a
-- job is checked here, in one step, before anything is done about it.
--
-- ARGV  prefix, module, epoch, error body (JSON) for what was removed, began (ms), kind, then
--       'unlisted', search, id...  live, and not seen in the run queue. search 1: before one is put
--                                  back, look for it in the whole queue
--       'listed', id...            seen in the run queue, and not live
--       'stale', id...             listed at two passes, and neither live nor waiting
--       'found', id...             suspects that were seen in the run queue
--       'leftovers', place, cursor  a part of what is noted of jobs that may be gone: 1 scores,
--                                  2 suspects, 3 suspending, 4 control
--       'end', live jobs that are counted in one step   the pass is over
-- Returns {how many were put right, then: the unlisted ids to ask for again; the listed ids for which
-- there is nothing to run; where to go on with the leftovers; at the end, 1: count the load, in parts}, or 0 when the epoch is over.

local SEARCHES = 4           -- through the whole queue, in one step: 0.5 to 1 ms each in one of 100,000
local LEFTOVERS = 500

-- Does it have a place, or did it come into the run queue since the pass began?
local function is_placed(c, id, began_ms)
    local attempt, ready_ms = unpack(redis.call('HMGET', job_key(c, id), 'aios_attempt', 'aios_ready_ms'))
    return count(ready_ms) >= began_ms
        or redis.call('ZSCORE', c.leases, id .. ':' .. (attempt or '0'))
end

local function mend_unlisted(c, id, pass)
    if redis.call('HEXISTS', c.live, id) == 0 then return 0 end
    local status = status_of(c, id)
    if not status or status == 'canceled' then
        terminate(c, id, 'cancel', 'canceled', pass.body, pass.iso, not status and attempts_lent(c)[id] or nil)
        return 1
    end
    if redis.call('ZSCORE', c.held, id) then return let_go(c, c.held, 'release', id) end
    if redis.call('ZSCORE', c.parked, id) then return let_go(c, c.parked, 'unpark', id) end
    if is_placed(c, id, pass.began_ms) then
        redis.call('ZREM', c.suspects, id)
        return 0
    end
    if not is_lost(c, id, status) then return 0 end
    local at = home(c, redis.call('HGET', job_key(c, id), 'origin'))
    if pass.search and redis.call('EXISTS', at.queue) == 1 then
        if pass.searches == SEARCHES then
            pass.again[#pass.again + 1] = id
            return 0
        end
        pass.searches = pass.searches + 1
        if redis.call('LPOS', at.queue, id) then
            redis.call('ZREM', c.suspects, id)
            return 0
        end
    end
    put_back_lost(c, id)
    return 1
end

local function mend_listed(c, id, pass)
    if redis.call('HEXISTS', c.live, id) == 1 then return 0 end
    if status_of(c, id) == 'queued' then
        adopt(c, id, pass.iso)
        return 1
    end
    pass.again[#pass.again + 1] = id
    return 0
end

local function drop_stale(c, id)
    if redis.call('HEXISTS', c.live, id) == 1 or status_of(c, id) == 'queued' then return 0 end
    local dropped = 0
    for _, at in ipairs(all_queues(c)) do dropped = dropped + redis.call('LREM', at.queue, 0, id) end
    return math.min(1, dropped)
end

local function drop_suspicion(c, id) return 0 * redis.call('ZREM', c.suspects, id) end

local KINDS = {unlisted = mend_unlisted, listed = mend_listed, stale = drop_stale, found = drop_suspicion}

local function drop_some_leftovers(c)
    local place, cursor = tonumber(take(c)), take(c)
    if place == 3 then
        drop_told(c)
        return {0, '0'}
    end
    local key = ({c.scores, c.suspects, false, c.control})[place]
    return {0, drop_gone(c, place == 4 and 'HSCAN' or 'ZSCAN', key, cursor, LEFTOVERS)}
end

register('mend', function(c)
    local epoch, pass = take(c), {iso = iso_of(c.now), again = {}, searches = 0, body = take(c)}
    if not leads(c, epoch) then return 0 end
    pass.began_ms = tonumber(take(c))
    local kind, mended = take(c), 0
    if kind == 'leftovers' then return drop_some_leftovers(c) end
    if kind == 'end' then
        redis.call('HSET', c.own .. 'reconciled', c.q, c.now)
        return {0, quota.sweep(c, tonumber(take(c))) and 1 or 0}
    end
    if kind == 'unlisted' then pass.search = take(c) == '1' end
    while c.at <= #c.args do mended = mended + KINDS[kind](c, take(c), pass) end
    c.off = nil -- what was ended here was not in the queue
    return {mended, unpack(pass.again)}
end)
