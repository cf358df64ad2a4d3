-- reconcile.lua: answer for what stock RQ tools changed behind our back.
--
-- ARGV  prefix, module, epoch, error body (JSON) for what was removed, limit (unused)
--
-- Every live job is in exactly one place: the run queue, a lease, held, parked. Stock tools do not
-- know of the last three: what runs or is held keeps its place when it is deleted or cancelled,
-- so the records of those are looked at each time. What waits is not, while the counts agree (but
-- for a full look every FULL_LOOK_MS). A live job that is nowhere was deleted or cancelled
-- (whoever waits hears it), or a stock worker has just popped it: then it is a suspect, and put
-- back when it is still nowhere after GRACE_MS. A listed job that is not live was enqueued or
-- requeued by a stock tool: it is taken in. A held one that a stock tool enqueued is held no more.
-- Returns how many jobs were put right; 0 also when the epoch is over.

local GRACE_MS = 3000
local FULL_LOOK_MS = 10000   -- in a long queue 1 ms per live job: a look costs about 2 us for each
local RELOOK_SHARE = 20      -- where the counts disagree: 1 ms of waiting for so many jobs
local QUARANTINE_MS = 7 * 86400000 -- how long a quarantined id can be seen
local REGISTRIES = {':finished:', ':failed:', ':canceled:'}

-- Is a look at all that is live due?
local function is_due(c)
    local live = redis.call('HLEN', c.live)
    local age_ms = c.now - count(redis.call('HGET', c.own .. 'reconciled', c.q))
    if age_ms >= math.max(FULL_LOOK_MS, live) then return true end
    local places = redis.call('LLEN', c.queue) + redis.call('ZCARD', c.leases)
        + redis.call('ZCARD', c.held) + redis.call('ZCARD', c.parked)
    return places ~= live and age_ms >= math.floor(live / RELOOK_SHARE)
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

-- RQ's status of a job, false when it was deleted: a worker may have written to its record since,
-- but never its data.
local function status_of(c, id)
    local job = job_key(c, id)
    local found = redis.pcall('HEXISTS', job, 'data')
    if type(found) == 'table' then -- an error: somebody put a key of another type in its place
        redis.call('UNLINK', job)
        return false
    end
    return found == 1 and redis.call('HGET', job, 'status')
end

-- End a job that has a place if a stock tool deleted or cancelled it. Returns 1, else 0.
local function withdraw(c, id, body, iso, lent)
    local status = status_of(c, id)
    if status and status ~= 'canceled' then return 0 end
    terminate(c, id, 'cancel', 'canceled', body, iso, lent)
    return 1
end

-- A held job that is not `deferred` any more: a stock tool enqueued it, and it may run already.
local function let_go(c, id)
    local status, attempt = unpack(redis.call('HMGET', job_key(c, id), 'status', 'aios_attempt'))
    local live = redis.call('HEXISTS', c.live, id) == 1
    if live and (not status or status == 'deferred' or status == 'canceled') then return 0 end
    redis.call('ZREM', c.held, id)
    redis.call('ZREM', c.deferred, id)
    if live and status == 'queued' then note(c, 'release', id, attempt or '0', '', '') end
    return 1
end

local function withdraw_placed(c, body, iso)
    local mended = 0
    for _, member in ipairs(redis.call('ZRANGE', c.leases, 0, -1)) do
        local id, attempt = string.match(member, '^(.*):(%d+)$')
        mended = mended + withdraw(c, id, body, iso, attempt)
    end
    for _, id in ipairs(redis.call('ZRANGE', c.held, 0, -1)) do mended = mended + let_go(c, id) end
    for _, place in ipairs({c.held, c.parked}) do
        for _, id in ipairs(redis.call('ZRANGE', place, 0, -1)) do
            mended = mended + withdraw(c, id, body, iso)
        end
    end
    return mended
end

-- RQ leaves this to whoever looks at a registry next, which may be nobody.
local function drop_expired(c)
    for _, name in ipairs(REGISTRIES) do
        redis.call('ZREMRANGEBYSCORE', c.p .. name .. c.q, '-inf', math.floor(c.now / 1000))
    end
    redis.call('ZREMRANGEBYSCORE', c.quarantine, '-inf', c.now - QUARANTINE_MS)
end

-- A job that is live and nowhere. Returns true when it was put right.
local function settle(c, id, body, iso)
    local status = status_of(c, id)
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
    local status = status_of(c, id)
    if status == 'queued' then
        adopt(c, id, iso)
        return true
    end
    leave_queue(c, id) -- deleted, or ended: there is nothing to run
    return false
end

-- What was noted of jobs that were never live, or were deleted before they were.
local function drop_leftovers(c, live)
    for _, key in ipairs({c.scores, c.suspects, c.yielding}) do
        local gone = {}
        for _, id in ipairs(redis.call('ZRANGE', key, 0, -1)) do
            if not live[id] then gone[#gone + 1] = id end
        end
        variadic('ZREM', key, gone)
    end
    local gone = {}
    for _, id in ipairs(redis.call('HKEYS', c.control)) do
        if not live[id] then gone[#gone + 1] = id end
    end
    variadic('HDEL', c.control, gone)
end

-- Compare all that is live with all that has a place. Returns how many jobs were put right.
local function look_at_all(c, body, iso)
    redis.call('HSET', c.own .. 'reconciled', c.q, c.now)
    local places, mended, live = all_places(c), 0, {}
    for _, id in ipairs(redis.call('HKEYS', c.live)) do live[id] = true end
    for _, id in ipairs(redis.call('LRANGE', c.queue, 0, -1)) do
        if not live[id] and not places[id] then
            live[id] = take_in_listed(c, id, iso) or nil
            mended = mended + 1
        end
        places[id] = true
    end
    drop_leftovers(c, live)
    for _, id in ipairs(redis.call('ZRANGE', c.suspects, 0, -1)) do
        if places[id] then redis.call('ZREM', c.suspects, id) end
    end
    for id in pairs(live) do
        if not places[id] and settle(c, id, body, iso) then
            mended = mended + 1
        end
    end
    return mended
end

register('reconcile', function(c)
    local epoch, body = take(c), take(c)
    if not leads(c, epoch) then return 0 end
    local iso = iso_of(c.now)
    local mended = withdraw_placed(c, body, iso)
    clear_queue(c)
    if is_due(c) then
        mended = mended + look_at_all(c, body, iso)
        clear_queue(c)
        drop_expired(c)
    end
    quota.sweep(c)
    send_replies(c)
    write_journal(c)
    return mended
end)
