-- move.lua: take waiting jobs from a core that does not serve them to one that does.
--
-- ARGV  prefix, module, epoch, error body (JSON) for what nobody is left for
-- A core without a living worker: its jobs go to another one that their name leads to, which lives. A job
-- that names the core itself stays, unless another core had given it away before (a fallback): then it
-- goes on along the chains of both.
-- A core whose slots are all taken: as many go to one that stands idle.
-- A core that was removed: its jobs go where their name leads now, or along those chains; where that is
-- nowhere, they end.
-- One of whose answer something is there goes only where its snapshot goes on; one that lost its worker
-- before that may go anywhere that its name leads.
-- It stands behind those that wait for longer; what its old queue had put at the head (its worker died, or
-- left) stays ahead.
-- Returns {how many moved, how many ended}; 0 when the epoch is over. A part of a queue at a time.

local MOVED = 64   -- in one step, or ended: about 3 ms
local SEEN = 256   -- places of a queue that are looked at for them
local PASSED = 60000 -- places that jobs are put in behind, in all of a step: about 3 ms more

-- How many jobs a living core could take up at once; below 0: so many more wait for it.
local function room_of(c, name, rooms)
    if not rooms[name] then
        local at = names(c.p, c.q .. '.' .. name).__index
        rooms[name] = (routes.slots(c, name) or 0) - call('ZCARD', at.wip) - call('LLEN', at.queue)
    end
    return rooms[name]
end

local ASKED = {'status', 'aios_needs', 'aios_attempt', 'aios_tried', 'origin', 'aios_tokens', 'aios_streamed'}

-- A job that waits in a queue; nil: it does not.
local function read_one(c, at, id)
    local f = redis.pcall('HMGET', job_key(c, id), unpack(ASKED))
    if f.err or f[1] ~= 'queued' or f[5] ~= at.name then return nil end
    local begun = f[3] and (count(f[6]) > 0 or f[7] or call('HEXISTS', c.snapshot_bytes, id) == 1)
    return {id = id, asked = routes.asked(f[2]), attempt = f[3] or '0', tried = f[4] or '', begun = begun}
end

local function may_go(c, job, name, pass)
    return name ~= pass.core and not string.find(' ' .. job.tried .. ' ', ' ' .. name .. ' ', 1, true)
        and (not job.begun or routes.snapshot_model(c, name) == pass.model)
end

-- The next core of the chains of those that had the job, the last one first; nil: there is none.
local function next_of_chain(c, job, pass)
    local had, known = {}, nil
    for core in string.gmatch(job.tried, '%S+') do table.insert(had, 1, core) end
    table.insert(had, 1, pass.core)
    for _, core in ipairs(had) do
        for _, name in ipairs(routes.fallback(c, core)) do
            if routes.card(c, name) and may_go(c, job, name, pass) then
                if routes.slots(c, name) then return name end
                known = known or name
            end
        end
    end
    return pass.why == 'removed' and known or nil
end

local function is_better(c, name, best, rooms)
    if not best then return true end
    local lives, other = routes.slots(c, name) ~= nil, routes.slots(c, best) ~= nil
    if lives ~= other then return lives end
    return room_of(c, name, rooms) > room_of(c, best, rooms)
end

-- Where a job of this core may go instead; nil: nowhere.
local function other_core(c, job, pass)
    local best
    for _, name in ipairs(routes.leads(c, job.asked)) do
        local fits = may_go(c, job, name, pass) and (pass.why == 'removed' or routes.slots(c, name))
        if fits and pass.why == 'busy' then fits = room_of(c, name, pass.rooms) > 0 end
        if fits and is_better(c, name, best, pass.rooms) then best = name end
    end
    if best or pass.why == 'busy' or job.tried == '' then return best end
    return next_of_chain(c, job, pass)
end

-- What the order of a queue goes by: scores where its policy gives any, else since when each waits.
local function rank_of(c, id, by_score)
    if by_score then return tonumber(call('ZSCORE', c.scores, id) or nil) or math.huge end
    local f = redis.pcall('HMGET', job_key(c, id), 'aios_ready_ms', 'aios_attempt', 'aios_ahead')
    if f.err or f[3] and f[3] == f[2] then return 0 end
    return count(f[1])
end

-- How many of a queue stay before a job of this rank.
local function place_of(c, queue, rank, by_score)
    local low, high = 0, call('LLEN', queue)
    while low < high do
        local middle = math.floor((low + high) / 2)
        if rank_of(c, call('LINDEX', queue, middle), by_score) > rank then
            high = middle
        else
            low = middle + 1
        end
    end
    return low
end

local function put_in(c, queue, id, pass)
    local place = place_of(c, queue, rank_of(c, id, pass.by_score), pass.by_score)
    local next_ = call('LINDEX', queue, place)
    if not next_ then
        call('RPUSH', queue, id)
    else
        call('LINSERT', queue, 'BEFORE', next_, id)
        pass.passed = pass.passed + place
    end
end

local function move_one(c, job, to, pass)
    local target = names(c.p, c.q .. '.' .. to).__index
    call('HSET', job_key(c, job.id), 'origin', target.name)
    put_in(c, target.queue, job.id, pass)
    pass.rooms[to] = room_of(c, to, pass.rooms) - 1
    note(c, 'move', job.id, job.attempt, '', pass.core .. ' ' .. to)
end

local function is_full(pass, places, over)
    return #places + #over == MOVED or pass.passed >= PASSED or pass.why == 'busy' and #places == pass.most
end

-- Look at the next part of a queue. Returns the places of what was moved, and what is to end.
local function sift_core(c, at, pass)
    local first = count(call('HGET', c.looked, at.core))
    local ids = call('LRANGE', at.queue, first, first + SEEN - 1)
    local places, over, seen = {}, {}, 0
    for i, id in ipairs(ids) do
        if is_full(pass, places, over) then break end
        seen = i
        local job = read_one(c, at, id)
        local to = job and other_core(c, job, pass)
        if to then
            move_one(c, job, to, pass)
            places[#places + 1] = first + i - 1
        elseif job and pass.why == 'removed' then
            over[#over + 1] = id
        end
    end
    local next_ = first + seen - #places
    if #ids < SEEN and seen == #ids then next_ = 0 end
    if next_ == 0 then call('HDEL', c.looked, at.core) else call('HSET', c.looked, at.core, next_) end
    return places, over
end

-- Why jobs of a core should go elsewhere, if they should: what a pass goes by.
local function reason_of(c, at)
    local pass = {core = at.core, rooms = {}, model = routes.snapshot_model(c, at.core), passed = 0,
        by_score = call('EXISTS', c.scores) == 1}
    if not routes.card(c, at.core) then
        pass.why = 'removed'
        return pass
    end
    local slots = routes.slots(c, at.core)
    if not slots then
        pass.why = 'silent'
        return pass
    end
    pass.why, pass.most = 'busy', 0
    if call('ZCARD', at.wip) < slots then return nil end
    for _, name in ipairs(routes.names(c)) do
        if name ~= at.core and routes.slots(c, name) then
            pass.most = pass.most + math.max(0, room_of(c, name, pass.rooms))
        end
    end
    return pass.most > 0 and pass or nil
end

-- A core that was removed is forgotten with its last job, and with the last record of one.
local function forget_core(c, at)
    if routes.card(c, at.core) then return end
    if call('EXISTS', at.queue, at.wip, at.deferred, at.ended, at.finished, at.failed, at.canceled) > 0 then
        return
    end
    call('SREM', c.queues, at.name)
    call('SREM', c.p .. ':queues', at.queue)
    call('HDEL', c.removed, at.core)
    call('HDEL', c.looked, at.core)
end

register('move', function(c)
    local epoch, body, moved, ended = take(c), take(c), 0, 0
    if not leads(c, epoch) then return 0 end
    for i, at in ipairs(all_queues(c)) do
        local waits = i > 1 and call('EXISTS', at.queue) == 1
        local pass = waits and reason_of(c, at)
        if pass then
            local places, over = sift_core(c, at, pass)
            drop_places(at.queue, places)
            for _, id in ipairs(over) do terminate(c, id, 'fail', 'failed', body, iso_of(c.now)) end
            moved, ended = moved + #places, ended + #over
        elseif i > 1 and not waits then
            forget_core(c, at)
        end
    end
    routes.drop_gone(c)
    return {moved, ended}
end)
