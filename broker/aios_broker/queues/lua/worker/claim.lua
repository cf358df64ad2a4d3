-- claim.lua: lend the first jobs that this worker can run. Shared with finish and yield, which
-- claim in the same step; `adopt_one` lends one job to a stock RQ worker.
--
-- ARGV  prefix, module, worker, now (ISO), want, lease_ms, cores (comma between)
--
-- Returns one row per lease: id, attempt, data, trusted, waited for, queued_ms, deadline_ms (from
-- now); and, of one that is no newcomer, ran_ms, slices, suspensions, losses, has snapshot, alone
-- (a last try: the worker runs nothing else beside it); and 1 where it was parked and is decided.
-- And one row {name, 0} per id that was quarantined because no worker could read it.

-- What is read of every job; the first five stand at the head of its hash, in this order.
local function read_job(c, id)
    local f = redis.pcall('HMGET', job_key(c, id), 'status', 'data', 'aios_metadata', 'aios_ready_ms',
        'aios_deadline_ms', 'aios_needs', 'aios_attempt') -- an error: a foreign key of another type
    if f.err or not f[2] then return nil end
    local job = {id = id, status = f[1], data = f[2], metadata = f[3],
        ready_ms = tonumber(f[4]) or c.now, deadline_ms = tonumber(f[5]) or c.now + DEFAULT_DEADLINE_MS,
        needs = f[6], attempt = 0, queued_ms = 0, losses = 0}
    if not f[7] then return job end -- it has never run, nor been held
    local past = call('HMGET', job_key(c, id), 'aios_queued_ms', 'aios_ran_ms', 'aios_slices',
        'aios_suspensions', 'aios_losses', 'aios_decided')
    job.attempt, job.queued_ms, job.ran_ms = count(f[7]), count(past[1]), count(past[2])
    job.slices, job.suspensions, job.losses = count(past[3]), count(past[4]), count(past[5])
    job.decided = past[6]
    return job
end

-- Only what waits may be lent: a stock tool may have pushed an id that runs, or has ended.
local function lendable(c, job)
    if not job or job.status ~= 'queued' then return false end
    return job.attempt == 0 or not call('ZSCORE', c.leases, job.id .. ':' .. job.attempt)
end

-- One whose workers died again and again may be what killed them. Its last try is alone, and its
-- worker takes nothing else meanwhile: among others it would take them along each time, until all
-- of them are quarantined.
local function is_suspect(c, job)
    if not job or job.losses == 0 then return false end
    local max_losses = tonumber(call('HGET', c.policy, 'max_losses') or '3')
    return job.losses >= max_losses - 1
end

-- Is it UTF-8? Ids of ours are; a stock tool may push any bytes.
local function readable(id)
    if not string.find(id, '[\128-\255]') then return true end
    for _, form in ipairs({'[\194-\223][\128-\191]', '\224[\160-\191][\128-\191]',
        '[\225-\236\238\239][\128-\191][\128-\191]', '\237[\128-\159][\128-\191]',
        '\240[\144-\191][\128-\191][\128-\191]', '[\241-\243][\128-\191][\128-\191][\128-\191]',
        '\244[\128-\143][\128-\191][\128-\191]'}) do
        id = string.gsub(id, form, '?')
    end
    return not string.find(id, '[\128-\255]')
end

-- A job whose id is no text could not be named to a worker, a client or the journal, nor shown by
-- RQ's tools: it is failed without any of them. Its escaped id is kept for who looks for it.
local function quarantine_unreadable(c, id)
    local name = string.gsub(id, '[^%w%-_.:]', function(byte)
        return string.format('%%%02X', string.byte(byte))
    end)
    call('HSET', job_key(c, id), 'status', 'failed')
    call('EXPIRE', job_key(c, id), 3600)
    call('ZADD', c.quarantine, c.now, name)
    c.unreadable = c.unreadable or {}
    c.unreadable[#c.unreadable + 1] = {name, 0}
end

-- Go through ids of the queue: choose what to lend. Returns what to take off the list (counted from
-- the first of them), and how many of these at the very beginning.
local function sift(c, ids, want, cores, chosen)
    local removed, passed = {}, 0
    local seen, prefix = {}, 0
    for i, id in ipairs(ids) do
        if #chosen == want or is_suspect(c, chosen[1]) then break end
        local job = not seen[id] and read_job(c, id) or nil
        seen[id] = true
        if not lendable(c, job) then
            removed[#removed + 1] = i
        elseif not job.metadata and not readable(id) then
            quarantine_unreadable(c, id)
            removed[#removed + 1] = i
        elseif #chosen > 0 and is_suspect(c, job) then
            break
        elseif admission.admits(c, job, cores) then
            admission.enter(c, job)
            chosen[#chosen + 1] = job
            removed[#removed + 1] = i
        else
            admission.passed(c, job)
            passed = passed + 1
        end
        if passed == 0 then prefix = i end
    end
    return removed, prefix
end

-- Those that are owed what they need go first, wherever they stand, as soon as it is free.
local function choose_owed(c, want, cores)
    local chosen = {}
    for _, id in ipairs(admission.owed(c)) do
        if #chosen == want or is_suspect(c, chosen[1]) then break end
        local job = read_job(c, id)
        if lendable(c, job) and not (#chosen > 0 and is_suspect(c, job))
            and admission.admits(c, job, cores) then
            admission.enter(c, job)
            chosen[#chosen + 1] = job
            call('LREM', c.queue, 1, id)
        end
    end
    return chosen
end

-- Choose up to `want` from the head; drop what cannot be lent to anyone, pass by what is not
-- admitted here: LOOKAHEAD jobs, or, where it is all of them, many more.
local function choose(c, want, cores)
    local chosen, place, ahead = choose_owed(c, want, cores), 0, want + LOOKAHEAD
    local ids = call('LRANGE', c.queue, 0, ahead - 1)
    local removed, prefix = sift(c, ids, want, cores, chosen)
    if #chosen == 0 and #ids == ahead then
        place, ahead = admission.far_look(c, want + FAR_LOOKAHEAD)
        if place then
            ids = call('LRANGE', c.queue, place, place + ahead - 1)
            removed, prefix = sift(c, ids, want, cores, chosen)
            if #chosen == 0 then admission.missed(c, #ids == ahead and place + ahead or 0) end
        end
    end
    if (place or 0) > 0 then prefix = 0 end
    if prefix > 0 then call('LTRIM', c.queue, prefix, -1) end
    local places = {}
    for i = prefix + 1, #removed do
        places[#places + 1] = (place or 0) + removed[i] - 1 - prefix
    end
    drop_places(c, places)
    return chosen
end

-- A foreign job is known from here on: somebody may ask for it, and it has a deadline.
local function take_in(c, jobs, iso, clients)
    for i, job in ipairs(jobs) do
        if not clients[i] then
            adopt(c, job.id, iso)
            clients[i] = ''
            job.ready_ms, job.deadline_ms, job.losses = c.now, c.now + DEFAULT_DEADLINE_MS, 0
        end
    end
end

-- What its worker is told of a job, from attempt `attempt` on.
local function row_of(c, job, attempt, clients, queued_ms)
    local row = {job.id, attempt, job.data, job.metadata and 1 or 0, clients ~= '' and 1 or 0,
        queued_ms, job.deadline_ms - c.now}
    if not job.slices then return row end
    row[8], row[9], row[10], row[11] = job.ran_ms, job.slices, job.suspensions, job.losses
    row[12], row[13] = call('HEXISTS', c.snapshot_bytes, job.id), 0
    if job.decided then row[14] = 1 end
    return row
end

local function lend(c, worker, iso, want, lease_ms, cores)
    if want <= 0 or call('EXISTS', c.p .. ':suspended') == 1 then return {} end
    local jobs = choose(c, want, ',' .. cores .. ',')
    if #jobs == 0 then return c.unreadable or {} end
    local now, ids, leases, wip, rows = c.now, {}, {}, {}, {}
    for i, job in ipairs(jobs) do ids[i] = job.id end
    local clients = read_many('HMGET', c.live, ids)
    take_in(c, jobs, iso, clients)
    local until_ms = text(c, now + lease_ms)
    for i, job in ipairs(jobs) do
        local id, attempt, queued_ms = job.id, job.attempt + 1, job.queued_ms + now - job.ready_ms
        local number = text(c, attempt)
        local member = id .. ':' .. number
        call('HSET', job_key(c, id), 'status', 'started', 'worker_name', worker,
            'started_at', iso, 'aios_attempt', number, 'aios_queued_ms', text(c, queued_ms))
        leases[2 * i - 1], leases[2 * i] = until_ms, member
        wip[2 * i - 1], wip[2 * i] = WIP_SCORE, member
        rows[i] = row_of(c, job, attempt, clients[i], queued_ms)
        if is_suspect(c, job) then rows[i][13] = 1 end
        if job.needs then admission.keep(c, job, member) end
        note(c, 'claim', id, number, worker, '')
    end
    variadic('ZADD', c.leases, leases)
    variadic('ZADD', c.wip, wip)
    for _, row in ipairs(c.unreadable or {}) do rows[#rows + 1] = row end
    return rows
end

register('claim', function(c)
    local worker, iso = take(c), take(c)
    return lend(c, worker, iso, tonumber(take(c)), tonumber(take(c)), take(c))
end)

-- ARGV  prefix, module, worker, now (ISO), lease_ms, id
-- A stock RQ worker popped the job and runs our entry point: give it the lease, leave RQ's own
-- fields to it. Returns one row; an empty list: it ended, or another worker runs it; 0: it is not
-- admitted now, ask again.
register('adopt', function(c)
    local worker, iso, lease_ms, id = take(c), take(c), tonumber(take(c)), take(c)
    local job = read_job(c, id)
    local client = call('HGET', c.live, id)
    if not job or (job.attempt > 0 and call('ZSCORE', c.leases, id .. ':' .. job.attempt)) then
        return {}
    end
    if not client and call('HEXISTS', job_key(c, id), 'aios_reply') == 1 then return {} end
    if not admission.admits(c, job) then return 0 end
    local clients = {client}
    take_in(c, {job}, iso, clients)
    local attempt, queued_ms = job.attempt + 1, job.queued_ms + c.now - job.ready_ms
    call('HSET', job_key(c, id), 'aios_attempt', attempt, 'aios_queued_ms', queued_ms)
    call('ZADD', c.leases, c.now + lease_ms, id .. ':' .. attempt)
    admission.enter(c, job)
    admission.keep(c, job, id .. ':' .. attempt)
    call('LREM', c.queue, 0, id)
    for _, place in ipairs({c.suspects, c.held, c.parked, c.deferred}) do call('ZREM', place, id) end
    note(c, 'claim', id, attempt, worker, '')
    return {row_of(c, job, attempt, clients[1], queued_ms)}
end)
