-- submit.lua: publish jobs, all or none; idempotent by id.
--
-- ARGV  prefix, module, now (ISO), n, then per job:
--       id, data, description, facts (JSON), needs, client, deadline_ms (from now)
--
-- Returns per job 1 new, 2 known and not ended, 3 ended: its stored reply was pushed again.
-- Or {'full', waiting, limit}, or {'core', name, served...}, or {'quota', limit, subject, waiting,
-- most}: then nothing was changed.

local function served_cores(c)
    local pairs_, names = call('HGETALL', c.cores), {}
    for i = 1, #pairs_, 2 do
        if c.now - pairs_[i + 1] < CORE_TTL_MS then names[pairs_[i]] = true end
    end
    return names
end

local function unserved_core(c, jobs)
    local names
    for _, job in ipairs(jobs) do
        local core = job.needs ~= '' and string.match(' ' .. job.needs, ' core:(%S+)')
        if core then
            names = names or served_cores(c)
            if not names[core] then
                local answer = {'core', core}
                for name in pairs(names) do answer[#answer + 1] = name end
                return answer
            end
        end
    end
end

local function read_jobs(c)
    local iso, n, jobs = take(c), tonumber(take(c)), {}
    local args, at = c.args, c.at
    for i = 1, n do
        jobs[i] = {id = args[at], data = args[at + 1], description = args[at + 2],
            facts = args[at + 3], needs = args[at + 4], client = args[at + 5],
            deadline_ms = tonumber(args[at + 6])}
        at = at + 7
    end
    c.at = at
    return iso, jobs
end

-- One more client waits for a job that exists already.
local function rejoin(c, job)
    local clients = call('HGET', c.live, job.id)
    if clients then
        if job.client ~= '' and not string.find(' ' .. clients .. ' ', ' ' .. job.client .. ' ', 1, true) then
            call('HSET', c.live, job.id, clients == '' and job.client or clients .. ' ' .. job.client)
        end
        return 2
    end
    local reply = call('HGET', job_key(c, job.id), 'aios_reply')
    if reply then
        reply_to(c, job.client, reply)
        return 3
    end
    call('HSET', c.live, job.id, job.client) -- a stock tool put it here
    return 2
end

local REMOVED = '{"code":"cancelled","message":"it was removed from the queue by a stock RQ tool"}'

-- Ids of live jobs whose records a stock tool has just deleted come again: whoever waits for those
-- is told first, and what their workers may still say does not count for the new ones.
local function bury_deleted(c, jobs, iso)
    local lent = {}
    for _, member in ipairs(call('ZRANGE', c.leases, 0, -1)) do
        local id, attempt = string.match(member, '^(.*):(%d+)$')
        lent[id] = attempt
    end
    for _, job in ipairs(jobs) do
        if call('HEXISTS', c.live, job.id) == 1 then
            terminate(c, job.id, 'cancel', 'canceled', REMOVED, iso, lent[job.id])
            job.attempt = lent[job.id]
        end
    end
    clear_queue(c)
end

-- All that is live has a deadline: one that was there before belongs to a job that was deleted.
local function enter_deadlines(c, jobs, iso)
    local deadlines = {}
    for _, job in ipairs(jobs) do
        deadlines[#deadlines + 1] = text(c, c.now + job.deadline_ms)
        deadlines[#deadlines + 1] = job.id
    end
    if variadic('ZADD', c.deadlines, deadlines) < #jobs then
        bury_deleted(c, jobs, iso)
        variadic('ZADD', c.deadlines, deadlines)
    end
end

local function publish(c, job, iso, batch)
    local key, now = job_key(c, job.id), text(c, c.now)
    call('HSET', key, 'status', 'queued', 'data', job.data, 'aios_facts', job.facts,
        'aios_ready_ms', now, 'aios_deadline_ms', text(c, c.now + job.deadline_ms),
        'created_at', iso, 'enqueued_at', iso, 'origin', c.q, 'description', job.description,
        'timeout', text(c, math.ceil(job.deadline_ms / 1000)), 'aios_submitted_ms', now)
    if job.needs ~= '' then call('HSET', key, 'aios_needs', job.needs) end
    if job.attempt then call('HSET', key, 'aios_attempt', job.attempt) end
    batch.queue[#batch.queue + 1] = job.id
    batch.live[#batch.live + 1] = job.id
    batch.live[#batch.live + 1] = job.client
    quota.moved(c, job.facts, nil, 'q', job.id)
    note(c, 'submit', job.id, '', job.client, job.facts)
end

local function any_known(c, jobs)
    local keys = {}
    for i, job in ipairs(jobs) do keys[i] = job_key(c, job.id) end
    for first = 1, #keys, CHUNK do
        if call('EXISTS', unpack(keys, first, math.min(first + CHUNK - 1, #keys))) > 0 then
            return true
        end
    end
    return false
end

register('submit', function(c)
    local iso, jobs = read_jobs(c)
    local check, fresh, seen = any_known(c, jobs), {}, {}
    for _, job in ipairs(jobs) do
        if seen[job.id] or (check and call('EXISTS', job_key(c, job.id)) == 1) then
            job.known = true
        else
            fresh[#fresh + 1] = job
        end
        seen[job.id] = true
    end
    local refusal = unserved_core(c, fresh) -- one that is known was taken before: sent again
    if refusal then return refusal end
    local limit = tonumber(call('HGET', c.policy, 'max_waiting') or '100000')
    local waiting = call('LLEN', c.queue)
    if #fresh > 0 and waiting + #fresh > limit then return {'full', waiting, limit} end
    refusal = quota.refuses(c, fresh)
    if refusal then return refusal end
    enter_deadlines(c, fresh, iso)
    local batch = {queue = {}, live = {}}
    for _, job in ipairs(fresh) do publish(c, job, iso, batch) end
    variadic('HSET', c.live, batch.live)
    variadic('RPUSH', c.queue, batch.queue)
    if #fresh > 0 then call('SADD', c.p .. ':queues', c.queue) end
    local answer = {}
    for i, job in ipairs(jobs) do answer[i] = job.known and rejoin(c, job) or 1 end
    send_replies(c)
    write_journal(c)
    return answer
end)
