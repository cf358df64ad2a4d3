-- reconcile.lua: answer for what stock RQ tools changed behind our back.
--
-- ARGV  prefix, module, epoch, error body (JSON) for what was removed, limit (unused)
--
-- Every live job is in exactly one place: the run queue, a lease, held, parked. While the counts
-- agree nothing is read (but for a full look every FULL_LOOK_MS). A live job that is nowhere was
-- deleted or cancelled (whoever waits hears it), or a stock worker has just popped it: then it
-- is a suspect, and put back when it is still nowhere after GRACE_MS. A listed job that is not
-- live was enqueued or requeued by a stock tool: it is taken in.
-- Returns how many jobs were put right; 0 also when the epoch is over.

local GRACE_MS = 3000
local FULL_LOOK_MS = 10000

local function agrees(c)
    local places = redis.call('LLEN', c.queue) + redis.call('ZCARD', c.leases)
        + redis.call('ZCARD', c.held) + redis.call('ZCARD', c.parked)
    if places ~= redis.call('HLEN', c.live) then return false end
    return c.now - count(redis.call('HGET', c.own .. 'reconciled', c.q)) < FULL_LOOK_MS
end

local function all_places(c)
    local places = {}
    for _, id in ipairs(redis.call('ZRANGE', c.held, 0, -1)) do places[id] = true end
    for _, id in ipairs(redis.call('ZRANGE', c.parked, 0, -1)) do places[id] = true end
    for _, member in ipairs(redis.call('ZRANGE', c.leases, 0, -1)) do
        places[string.match(member, '^(.*):%d+$')] = true
    end
    return places
end

-- A job that is live and nowhere. Returns true when it was put right.
local function settle(c, id, body, iso)
    local status = redis.call('HGET', job_key(c, id), 'status')
    if not status or status == 'canceled' then
        terminate(c, id, 'cancel', 'canceled', body, iso)
        return true
    end
    local since = redis.call('ZSCORE', c.suspects, id)
    if not since then
        redis.call('ZADD', c.suspects, c.now, id)
        return false
    end
    if c.now - since < GRACE_MS or status == 'started' then return false end
    redis.call('ZREM', c.suspects, id)
    redis.call('HSET', job_key(c, id), 'status', 'queued', 'aios_ready_ms', c.now)
    redis.call('LPUSH', c.queue, id)
    return true
end

local function take_in_listed(c, id, iso)
    local status = redis.call('HGET', job_key(c, id), 'status')
    if status == 'queued' then
        adopt(c, id, iso)
    else
        redis.call('LREM', c.queue, 0, id) -- deleted, or ended: there is nothing to run
    end
end

register('reconcile', function(c)
    local epoch, body = take(c), take(c)
    if not leads(c, epoch) or agrees(c) then return 0 end
    redis.call('HSET', c.own .. 'reconciled', c.q, c.now)
    local iso, places, mended, live = iso_of(c.now), all_places(c), 0, {}
    for _, id in ipairs(redis.call('HKEYS', c.live)) do live[id] = true end
    for _, id in ipairs(redis.call('LRANGE', c.queue, 0, -1)) do
        places[id] = true
        if not live[id] then
            live[id] = true
            take_in_listed(c, id, iso)
            mended = mended + 1
        end
    end
    for id in pairs(live) do
        if places[id] then
            redis.call('ZREM', c.suspects, id)
        elseif settle(c, id, body, iso) then
            mended = mended + 1
        end
    end
    send_replies(c)
    write_journal(c)
    return mended
end)
