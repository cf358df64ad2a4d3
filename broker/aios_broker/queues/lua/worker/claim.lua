-- claim.lua: lend the first jobs that this worker can run. Shared with finish and suspend, which
-- claim in the same step; `claim_one` lends one job to a stock RQ worker.
--
-- ARGV  prefix, module, a ClaimRow
--
-- Returns a LeaseRow per lease. `alone`: a last try, the worker runs nothing else beside it.
-- And one row {name, 0} per id that was quarantined because no worker could read it.

-- One whose workers died again and again may be what killed them. Its last try is alone, and its
-- worker takes nothing else meanwhile: among others it would take them along each time, until all
-- of them are quarantined.
local function is_suspect(c, losses)
    return losses > 0 and losses >= tonumber(call('HGET', c.policy, 'max_losses') or '3') - 1
end

-- What is read of every job; the first five stand at the head of its hash, in this order.
local function read_job(c, id)
    local f = redis.pcall('HMGET', job_key(c, id), 'status', 'data', 'aios_metadata', 'aios_ready_ms',
        'aios_deadline_ms', 'aios_needs', 'aios_attempt', origin_of(c)) -- an error: a foreign key of another type
    if f.err or not f[2] then return nil end
    local job = {id = id, status = f[1], data = f[2], metadata = f[3], trusted = f[3] and 1 or 0,
        ready_ms = tonumber(f[4]) or c.now, deadline_ms = (tonumber(f[5]) or c.now + DEFAULT_DEADLINE_MS) - c.now,
        needs = f[6], home = home(c, f[8]), attempt = 0, queued_ms = 0, wanted = 0}
    job.core = job.home.core ~= '' and job.home.core or nil
    if not f[7] then return job end -- it has never run, nor been held
    local past = call('HMGET', job_key(c, id), 'aios_queued_ms', 'aios_ran_ms', 'aios_slices',
        'aios_suspensions', 'aios_losses', 'aios_decided', 'aios_cost', 'aios_currency', 'aios_read_by',
        'aios_tokens', 'aios_cached', 'aios_tried')
    job.attempt, job.queued_ms, job.ran_ms = count(f[7]), count(past[1]), count(past[2])
    job.slices, job.suspensions, job.losses = count(past[3]), count(past[4]), count(past[5])
    job.decided = past[6] or ''
    job.cost, job.currency, job.read_by = past[7] or '0', past[8] or '', past[9] or ''
    job.begun, job.cached, job.tried = past[10], count(past[11]), past[12] or ''
    job.alone = is_suspect(c, job.losses) and 1 or 0
    return job
end

-- Only what waits may be lent, and from its own queue: a stock tool may have pushed an id that runs, or
-- has ended, or stands in another one. (A stranger's is taken where it stands.)
local function lendable(c, job, at)
    if not job or job.status ~= 'queued' then return false end
    if job.metadata and job.home.queue ~= at.queue then return false end
    return job.attempt == 0 or not call('ZSCORE', c.leases, job.id .. ':' .. job.attempt)
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

-- Lend this one, too? Nothing goes beside one whose last try it is.
local function choose_one(c, job, cores, chosen)
    if not admission.admits(c, job, cores) then return false end
    if admission.counts(c, job) then admission.enter(c, job, cores) end
    chosen[#chosen + 1] = job
    chosen.full = #chosen == chosen.want or job.alone == 1
    return true
end

-- Go through ids of the queue: choose what to lend. Returns what to take off the list (counted from
-- the first of them), and how many of these at the very beginning.
local function sift(c, ids, at, cores, chosen)
    local removed, passed = {}, 0
    local seen, prefix = {}, 0
    for i, id in ipairs(ids) do
        if chosen.full then break end
        local job = not seen[id] and read_job(c, id) or nil
        seen[id] = true
        if not lendable(c, job, at) then
            removed[#removed + 1] = i
        elseif not job.metadata and not readable(id) then
            quarantine_unreadable(c, id)
            removed[#removed + 1] = i
        elseif #chosen > 0 and job.alone == 1 then
            break
        elseif choose_one(c, job, cores, chosen) then
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
local function choose_owed(c, cores, chosen)
    for _, id in ipairs(admission.owed(c)) do
        if chosen.full then break end
        local job = read_job(c, id)
        if job and lendable(c, job, job.home) and not (#chosen > 0 and job.alone == 1)
            and choose_one(c, job, cores, chosen) then
            call('LREM', job.home.queue, 1, id)
        end
    end
end

-- Choose up to `want` from the head of a queue; drop what cannot be lent to anyone, pass by what is not
-- admitted here: LOOKAHEAD jobs, or, where it is all of them, many more.
local function choose_from(c, at, cores, chosen)
    local before, place, ahead = #chosen, 0, chosen.want + LOOKAHEAD
    c.is_barred = nil
    local ids = call('LRANGE', at.queue, 0, ahead - 1)
    local removed, prefix = sift(c, ids, at, cores, chosen)
    if #chosen == before and #ids == ahead then
        place, ahead = admission.far_scan(c, at, chosen.want + FAR_LOOKAHEAD)
        if place then
            ids = call('LRANGE', at.queue, place, place + ahead - 1)
            removed, prefix = sift(c, ids, at, cores, chosen)
            if #chosen == before then admission.missed(c, at, #ids == ahead and place + ahead or 0) end
        end
    end
    if (place or 0) > 0 then prefix = 0 end
    if prefix > 0 then call('LTRIM', at.queue, prefix, -1) end
    local places = {}
    for i = prefix + 1, #removed do
        places[#places + 1] = (place or 0) + removed[i] - 1 - prefix
    end
    drop_places(at.queue, places)
end

local function choose(c, want, cores)
    local chosen = {want = want}
    choose_owed(c, ',' .. cores .. ',', chosen)
    for _, at in ipairs(routes.serving(c, cores)) do
        if chosen.full then break end
        choose_from(c, at, ',' .. cores .. ',', chosen)
    end
    return chosen
end

-- A foreign job is known from here on: somebody may ask for it, and it has a deadline.
local function take_in(c, jobs, iso, clients)
    for i, job in ipairs(jobs) do
        if not clients[i] then
            adopt(c, job.id, iso)
            clients[i] = ''
            job.ready_ms, job.deadline_ms = c.now, DEFAULT_DEADLINE_MS
            if job.losses then job.losses, job.alone = 0, 0 end
        end
    end
end

-- What its worker is told of a job, from its next attempt on.
local function row_of(c, job, clients)
    job.attempt, job.queued_ms = job.attempt + 1, job.queued_ms + c.now - job.ready_ms
    if clients ~= '' then job.wanted = 1 end
    if job.slices then job.has_snapshot = call('HEXISTS', c.snapshot_bytes, job.id) end
    return pack.lease(job)
end

local function lend(c, claim)
    local want = tonumber(claim.want)
    if want <= 0 or call('EXISTS', c.p .. ':suspended') == 1 then return {} end
    local jobs = choose(c, want, claim.cores)
    if #jobs == 0 then return c.unreadable or {} end
    local ids, leases, wip, rows = {}, {}, {}, {}
    for i, job in ipairs(jobs) do ids[i] = job.id end
    local clients = read_many('HMGET', c.live, ids)
    take_in(c, jobs, claim.iso, clients)
    local until_ms = text(c, c.now + claim.lease_ms)
    for i, job in ipairs(jobs) do
        local id = job.id
        rows[i] = row_of(c, job, clients[i])
        local number = text(c, job.attempt)
        local member = id .. ':' .. number
        call('HSET', job_key(c, id), 'status', 'started', 'worker_name', claim.worker,
            'started_at', claim.iso, 'aios_attempt', number, 'aios_queued_ms', text(c, job.queued_ms))
        leases[2 * i - 1], leases[2 * i] = until_ms, member
        local shown = wip[job.home.wip] or {}
        shown[#shown + 1], wip[job.home.wip] = WIP_SCORE, shown
        shown[#shown + 1] = member
        if admission.counts(c, job) then admission.keep(c, job, member) end
        note(c, 'claim', id, number, claim.worker, '')
    end
    variadic('ZADD', c.leases, leases)
    for registry, shown in pairs(wip) do variadic('ZADD', registry, shown) end
    for _, row in ipairs(c.unreadable or {}) do rows[#rows + 1] = row end
    return rows
end

register('claim', function(c) return lend(c, read.claim(c)) end)

-- ARGV  prefix, module, worker, now (ISO), lease_ms, id
-- A stock RQ worker popped the job and runs our entry point: give it the lease, leave RQ's own
-- fields to it. Returns one row; an empty list: it ended, or another worker runs it; 0: it is not
-- admitted now, ask again.
register('claim_one', function(c)
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
    local row = row_of(c, job, clients[1])
    local attempt = job.attempt
    call('HSET', job_key(c, id), 'aios_attempt', attempt, 'aios_queued_ms', job.queued_ms)
    call('ZADD', c.leases, c.now + lease_ms, id .. ':' .. attempt)
    admission.enter(c, job)
    admission.keep(c, job, id .. ':' .. attempt)
    call('LREM', job.home.queue, 0, id)
    for _, place in ipairs({c.suspects, c.held, c.parked, job.home.deferred}) do call('ZREM', place, id) end
    note(c, 'claim', id, attempt, worker, '')
    return {row}
end)
