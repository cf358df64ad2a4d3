-- move.lua: take waiting jobs from a core that does not serve them to one that does.
--
-- ARGV  prefix, module, epoch, error body (JSON) for what nobody is left for
-- A core without a living worker: its jobs go to another one that their name leads to, which lives. A job
-- that names the core itself stays. One that has run goes only where its snapshot goes on.
-- A core whose slots are all taken: as many go to one that stands idle.
-- A core that was removed: its jobs go where their name leads now; where that is nowhere, they end.
-- Returns {how many moved, how many ended}; 0 when the epoch is over. A part of a queue at a time.

local MOVED = 64   -- in one step, or ended: about 3 ms
local SEEN = 256   -- places of a queue that are looked at for them

-- How many jobs a living core could take up at once.
local function room_of(c, name, rooms)
    if not rooms[name] then
        local at = names(c.p, c.q .. '.' .. name).__index
        rooms[name] = math.max(0, (routes.slots(c, name) or 0) - call('ZCARD', at.wip) - call('LLEN', at.queue))
    end
    return rooms[name]
end

-- Where a job of this core may go instead; nil: nowhere.
local function other_core(c, job, pass)
    local best
    for _, name in ipairs(routes.leads(c, job.asked)) do
        local fits = name ~= pass.core and not string.find(job.tried, ' ' .. name .. ' ', 1, true)
            and (job.attempt == 0 or routes.snapshot_model(c, name) == pass.model)
        if fits and pass.why == 'busy' then
            fits = room_of(c, name, pass.rooms) > 0
        elseif fits and pass.why == 'silent' then
            fits = routes.slots(c, name)
        end
        if fits and (not best or room_of(c, name, pass.rooms) > room_of(c, best, pass.rooms)) then best = name end
    end
    return best
end

local function move_one(c, job, at, to)
    local target = names(c.p, c.q .. '.' .. to).__index
    call('HSET', job_key(c, job.id), 'origin', target.name)
    call('RPUSH', target.queue, job.id)
end

-- Look at the next part of a queue. Returns the places of what was moved, and what is to end.
local function sift_core(c, at, pass)
    local first = count(call('HGET', c.looked, at.core))
    local ids = call('LRANGE', at.queue, first, first + SEEN - 1)
    local places, over, seen = {}, {}, 0
    for i, id in ipairs(ids) do
        if #places + #over == MOVED or pass.why == 'busy' and #places == pass.most then break end
        seen = i
        local f = redis.pcall('HMGET', job_key(c, id), 'status', 'aios_needs', 'aios_attempt', 'aios_tried', 'origin')
        if not f.err and f[1] == 'queued' and f[5] == at.name then
            local job = {id = id, asked = routes.asked(f[2]), attempt = count(f[3]),
                tried = ' ' .. (f[4] or '') .. ' '}
            local to = other_core(c, job, pass)
            if to then
                move_one(c, job, at, to)
                pass.rooms[to] = room_of(c, to, pass.rooms) - 1
                places[#places + 1] = first + i - 1
            elseif pass.why == 'removed' then
                over[#over + 1] = id
            end
        end
    end
    local next_ = first + seen - #places
    if #ids < SEEN and seen == #ids then next_ = 0 end
    if next_ == 0 then call('HDEL', c.looked, at.core) else call('HSET', c.looked, at.core, next_) end
    return places, over
end

-- Why jobs of a core should go elsewhere, if they should: what a pass goes by.
local function reason_of(c, at)
    local pass = {core = at.core, rooms = {}, model = routes.snapshot_model(c, at.core)}
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
        if name ~= at.core and routes.slots(c, name) then pass.most = pass.most + room_of(c, name, pass.rooms) end
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
