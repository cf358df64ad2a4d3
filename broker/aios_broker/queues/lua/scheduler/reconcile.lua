-- reconcile.lua: answer for what stock RQ tools changed behind our back.
--
-- ARGV  prefix, module, epoch, error body (JSON) for what was removed, live jobs that are compared
--       in one step
--
-- Every live job is in exactly one place: the run queue, a lease, held, parked. Stock tools do not
-- know of the last three: what runs or is held keeps its place when it is deleted or cancelled,
-- so the records of those are looked at each time. What waits is not, while the counts agree (but
-- for a full pass every FULL_PASS_MS). A live job that is nowhere was deleted or cancelled
-- (whoever waits hears it), or a stock worker has just popped it: then it is a suspect, and put
-- back when it is still nowhere after GRACE_MS. A listed job that is not live was enqueued or
-- requeued by a stock tool: it is taken in. A held or parked one that a stock tool enqueued is so
-- no more: whether it may do what it was parked for is asked anew.
-- Where more is live than may be looked at in one step, the full pass is the caller's, part by part:
-- see mend.lua.
-- Returns how many jobs were put right; 0 also when the epoch is over. Or, where something is to be
-- done in parts, {how many; now where it is a full pass, else 0; 1 where it is a count of the load;
-- how many have left a long run queue and are still listed (unlist.lua)}.

local GRACE_MS = 3000
local FULL_PASS_MS = 10000
local FULL_PASS_SHARE = 4    -- in a long queue 1 ms of waiting for so many live jobs
local RELOOK_SHARE = 20      -- where the counts disagree
local PLACED = 1000          -- of those that run, are held, or parked: looked at each time, about 3 ms
local QUARANTINE_MS = 7 * 86400000 -- how long a quarantined id can be seen
local DROPPED = 10000         -- entries of a registry that are dropped each time: about 3 ms
local REGISTRIES = {'finished', 'failed', 'canceled'}

-- Is a full pass due?
local function is_due(c)
    local live = redis.call('HLEN', c.live)
    local age_ms = c.now - count(redis.call('HGET', c.own .. 'reconciled', c.q))
    if age_ms >= math.max(FULL_PASS_MS, math.floor(live / FULL_PASS_SHARE)) then return true end
    local places = waiting_in(c) + redis.call('ZCARD', c.leases)
        + redis.call('ZCARD', c.held) + redis.call('ZCARD', c.parked)
        - redis.call('SCARD', ghosts_key(c))
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

-- What has just ended stood elsewhere than in the run queue, unless a stock tool had enqueued it, too:
-- a claim would drop it. To look for that in a long queue costs more than it is worth.
local function clear_short_queue(c, all_at_once)
    if waiting_in(c) > all_at_once then c.off = nil end
    clear_queues(c)
end

-- A held or parked job that is not `deferred` any more: a stock tool enqueued it, and it may run already.
local function let_go(c, place, event, id)
    local status, attempt, origin = unpack(redis.call('HMGET', job_key(c, id), 'status', 'aios_attempt',
        'origin'))
    local live = redis.call('HEXISTS', c.live, id) == 1
    if live and (not status or status == 'deferred' or status == 'canceled') then return 0 end
    redis.call('ZREM', place, id)
    redis.call('ZREM', home(c, origin).deferred, id)
    if live and status == 'queued' then note(c, event, id, attempt or '0', '', '') end
    return 1
end

local function withdraw_placed(c, body, iso)
    local mended = 0
    for _, member in ipairs(redis.call('ZRANGE', c.leases, 0, PLACED - 1)) do
        local id, attempt = string.match(member, '^(.*):(%d+)$')
        mended = mended + withdraw(c, id, body, iso, attempt)
    end
    for event, place in pairs({release = c.held, unpark = c.parked}) do
        local ids = redis.call('ZRANGE', place, 0, PLACED - 1)
        for _, id in ipairs(ids) do mended = mended + let_go(c, place, event, id) end
        for _, id in ipairs(redis.call('ZRANGE', place, 0, PLACED - 1)) do
            mended = mended + withdraw(c, id, body, iso)
        end
    end
    return mended
end

local function drop_up_to(key, score)
    local over = math.min(redis.call('ZCOUNT', key, '-inf', score), DROPPED)
    if over > 0 then redis.call('ZREMRANGEBYRANK', key, 0, over - 1) end
end

-- RQ leaves this to whoever looks at a registry next, which may be nobody.
local function drop_expired(c)
    for _, at in ipairs(all_queues(c)) do
        for _, name in ipairs(REGISTRIES) do drop_up_to(at[name], math.floor(c.now / 1000)) end
    end
    drop_up_to(c.quarantine, c.now - QUARANTINE_MS)
end

-- Has a job that is nowhere been so for long enough? Else it is a suspect from now on.
local function is_lost(c, id, status)
    local since = redis.call('ZSCORE', c.suspects, id)
    if not since then redis.call('ZADD', c.suspects, c.now, id) end
    return since and c.now - since >= GRACE_MS and status ~= 'started'
end

local function put_back_lost(c, id)
    redis.call('ZREM', c.suspects, id)
    redis.call('HSET', job_key(c, id), 'status', 'queued', 'aios_ready_ms', c.now)
    local at = home(c, redis.call('HGET', job_key(c, id), 'origin'))
    if at.core and at.core ~= '' then redis.call('SADD', c.queues, at.name) end -- it may be forgotten
    redis.call('LPUSH', at.queue, id)
end

-- A job that is live and nowhere. Returns true when it was put right.
local function mend(c, id, body, iso)
    local status = status_of(c, id)
    if not status or status == 'canceled' then
        terminate(c, id, 'cancel', 'canceled', body, iso)
        return true
    end
    if not is_lost(c, id, status) then return false end
    put_back_lost(c, id)
    return true
end

local function take_in_listed(c, id, at, iso)
    local status = status_of(c, id)
    if status == 'queued' then
        adopt(c, id, iso)
        return true
    end
    leave_queues(c, id, {at}) -- deleted, or ended: there is nothing to run
    return false
end

-- What was noted of jobs that were never live, or were deleted before they were: drop it. `step`
-- through their ids from `cursor` on, all of them where it is nil; returns where to go on.
local function drop_gone(c, command, key, cursor, step)
    local found = redis.call(command, key, cursor, 'COUNT', step)
    local ids, gone = {}, {}
    for i = 1, #found[2], 2 do ids[#ids + 1] = found[2][i] end
    for i, known in ipairs(read_many('HMGET', c.live, ids)) do
        if not known then gone[#gone + 1] = ids[i] end
    end
    variadic(command == 'HSCAN' and 'HDEL' or 'ZREM', key, gone)
    return found[1]
end

local function drop_all_gone(c, command, key)
    local cursor = '0'
    repeat cursor = drop_gone(c, command, key, cursor, CHUNK) until cursor == '0'
end

-- Those that were told to suspend are few.
local function drop_told(c)
    for _, at in ipairs(all_queues(c)) do drop_all_gone(c, 'ZSCAN', at.suspending) end
end

local function drop_leftovers(c)
    for _, place in ipairs({{'ZSCAN', c.scores}, {'ZSCAN', c.suspects}, {'HSCAN', c.control}}) do
        drop_all_gone(c, place[1], place[2])
    end
    drop_told(c)
end

-- A job that stands in a queue that is not its own (a stock tool pushed it there) does not run from there:
-- off with it. Returns whether it is one.
local function drop_misplaced(c, id, at)
    if not c.routed or home(c, redis.call('HGET', job_key(c, id), 'origin')).queue == at.queue then return false end
    leave_queues(c, id, {at})
    return true
end

-- Compare what one queue lists with what is live. Returns how many jobs were put right.
local function compare_list(c, at, live, places, iso)
    local mended = 0
    for _, id in ipairs(redis.call('LRANGE', at.queue, 0, -1)) do
        if not live[id] and not places[id] then
            live[id] = take_in_listed(c, id, at, iso) or nil
            mended = mended + 1
            places[id] = true
        elseif not live[id] or not drop_misplaced(c, id, at) then
            places[id] = true
        end
    end
    return mended
end

-- Compare all that is live with all that has a place. Returns how many jobs were put right.
local function full_pass(c, body, iso)
    redis.call('HSET', c.own .. 'reconciled', c.q, c.now)
    local places, mended, live = all_places(c), 0, {}
    for _, id in ipairs(redis.call('HKEYS', c.live)) do live[id] = true end
    for _, at in ipairs(all_queues(c)) do
        mended = mended + compare_list(c, at, live, places, iso)
    end
    drop_leftovers(c)
    for _, id in ipairs(redis.call('ZRANGE', c.suspects, 0, -1)) do
        if places[id] then redis.call('ZREM', c.suspects, id) end
    end
    for id in pairs(live) do
        if not places[id] and mend(c, id, body, iso) then
            mended = mended + 1
        end
    end
    return mended
end

register('reconcile', function(c)
    local epoch, body, all_at_once = take(c), take(c), tonumber(take(c))
    if not leads(c, epoch) then return 0 end
    local iso = iso_of(c.now)
    local mended = withdraw_placed(c, body, iso)
    clear_short_queue(c, all_at_once)
    local due = is_due(c)
    local in_parts = due and redis.call('HLEN', c.live) > all_at_once
    if due and not in_parts then
        mended = mended + full_pass(c, body, iso)
        clear_queues(c)
    end
    drop_expired(c)
    admission.sweep(c)
    local uncounted = quota.sweep(c, all_at_once)
    local ghosts = redis.call('SCARD', ghosts_key(c))
    if not in_parts and not uncounted and ghosts == 0 then return mended end
    return {mended, in_parts and c.now or 0, uncounted and 1 or 0, ghosts}
end)
