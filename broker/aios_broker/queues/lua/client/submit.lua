-- submit.lua: publish jobs; idempotent by id.
--
-- ARGV  prefix, module, now (ISO), n, n SubmissionRows, m, m ProofRows
--
-- Returns per job 1 new, 2 known and not ended, 3 ended: its stored reply was pushed again; or, where
-- it is refused and left nothing behind: {'full', waiting, limit}, {'core', name, known...},
-- {'unserved', name, core, ms since it was served}, {'quota', limit, subject, waiting, most}, {'differs', data}: the id is known with other data, and
-- nobody was told to wait for it; {'owned'}: it is another agent's; {'denied'}: its token is not its
-- agent's; {'nice', subject, value, least}: it may not go before others so far; {'unread', subject,
-- replies, limit}: so many replies of its client are not read; {'stopped', subject}: an operator has
-- suspended its agent or tenant. Of one agent's jobs those that are refused for want of room are the
-- last ones: their order stands.

local UNREAD = 1000 -- replies that a client may always leave unread

-- Is a job of these metadata this agent's (`tenant agent`)? The empty string asks for an operator.
local function is_of(c, who, metadata)
    return who == '' or quota.owner(c, metadata or nil).agent == 'agent:' .. who
end

-- Is the token of this digest, as long as it holds, one of the agent's whose metadata these are?
local function holds_token(c, digest, metadata)
    local held = call('HGET', c.tokens, digest)
    local readable, found = pcall(cjson.decode, held or '')
    if not readable or type(found) ~= 'table' or not found.agent then return false end
    if found.expires_at and found.expires_at * 1000 <= c.now then return false end
    return is_of(c, (found.tenant or 'default') .. ' ' .. found.agent, metadata)
end

-- Those of a batch whose tokens hold, and those that came without one: whoever reaches Redis is
-- part of the kernel, and vouches for them.
local function proven(c, jobs)
    local proofs = read_rows(c, read.proof)
    if #proofs == 0 then return jobs end
    local left, held = {}, {}
    for _, proof in ipairs(proofs) do
        local job = jobs[tonumber(proof.place)]
        local both = proof.token_digest .. ' ' .. job.metadata
        if held[both] == nil then held[both] = holds_token(c, proof.token_digest, job.metadata) end
        job.denied = not held[both]
    end
    for _, job in ipairs(jobs) do
        if not job.denied then left[#left + 1] = job end
    end
    return left
end

-- A core that nobody knows; or, where the policy has it so, one that no worker serves now.
local function unserved_core(c, job, refuses)
    if not c.routed then return end
    local asked = routes.asked(job.needs)
    local leads_to = routes.leads(c, asked)
    if asked and #leads_to == 0 then return {'core', asked, unpack(routes.names(c))} end
    if not refuses or #leads_to == 0 or routes.is_served(c, asked) then return end
    return {'unserved', asked or '', leads_to[1], c.now - count(call('HGET', c.served, leads_to[1]))}
end

-- The run queue of a new job.
local function route(c, job)
    local core = c.routed and routes.pick(c, routes.asked(job.needs), job.metadata)
    return core and names(c.p, c.q .. '.' .. core).__index or home(c)
end

-- One more client waits for a live job. Returns whether it is live.
local function join(c, id, client)
    local clients = call('HGET', c.live, id)
    if clients and client ~= '' and not string.find(' ' .. clients .. ' ', ' ' .. client .. ' ', 1, true) then
        call('HSET', c.live, id, clients == '' and client or clients .. ' ' .. client)
    end
    return clients
end

local function rejoin(c, job)
    if join(c, job.id, job.client) then return 2 end
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
    local lent = attempts_lent(c)
    for _, job in ipairs(jobs) do
        if call('HEXISTS', c.live, job.id) == 1 then
            terminate(c, job.id, 'cancel', 'canceled', REMOVED, iso, lent[job.id])
            job.attempt = lent[job.id]
        end
    end
    clear_queues(c)
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
    local now, at = batch.now, route(c, job)
    call('HSET', job.key, 'status', 'queued', 'data', job.data, 'aios_metadata', job.metadata,
        'aios_ready_ms', now, 'aios_deadline_ms', text(c, c.now + job.deadline_ms),
        'created_at', iso, 'enqueued_at', iso, 'origin', at.name, 'description', job.description,
        'timeout', text(c, math.ceil(job.deadline_ms / 1000)), 'aios_submitted_ms', now)
    if job.needs ~= '' then call('HSET', job.key, 'aios_needs', job.needs) end
    if job.attempt then call('HSET', job.key, 'aios_attempt', job.attempt) end
    local list = batch.lists[at.queue] or {}
    list[#list + 1], batch.lists[at.queue] = job.id, list
    batch.live[#batch.live + 1] = job.id
    batch.live[#batch.live + 1] = job.client
    if batch.quotas then quota.moved(c, job.metadata, nil, 'q', job.id) end
    note(c, 'submit', job.id, '', job.client, job.metadata)
end

local function any_known(jobs)
    local keys = {}
    for i, job in ipairs(jobs) do keys[i] = job.key end
    for first = 1, #keys, CHUNK do
        if call('EXISTS', unpack(keys, first, math.min(first + CHUNK - 1, #keys))) > 0 then
            return true
        end
    end
    return false
end

-- What its caller may say that it needs: of a tool's call which tool, no more. The locks are its worker's to name
-- (needs.lua): else who waits for a foreign one would keep it from whom it is for.
local function asked_needs(c, needs)
    if c.q ~= 'tool' then return needs end
    return string.match(needs, '^tool:%S+') or string.match(needs, '%s(tool:%S+)') or ''
end

-- Sort a batch into what is new and what is known. `seen`: the first of each id.
local function sort_jobs(c, jobs)
    for _, job in ipairs(jobs) do job.key, job.needs = job_key(c, job.id), asked_needs(c, job.needs) end
    local check, fresh, seen = any_known(jobs), {}, {}
    for _, job in ipairs(jobs) do
        local id = job.id
        if seen[id] then
            job.first = seen[id]
        elseif check and call('EXISTS', job.key) == 1 then
            job.known, seen[id] = true, job
        else
            fresh[#fresh + 1], seen[id] = job, job
        end
    end
    return fresh
end

-- A client that does not read its replies: {'unread', subject, replies, limit}; nil: it does, or none waits.
local function unread(c, job)
    if job.client == '' then return nil end
    c.boxes = c.boxes or {}
    local replies = c.boxes[job.client]
    if not replies then
        replies = call('LLEN', c.own .. 'reply:' .. job.client)
        c.boxes[job.client] = replies
    end
    if replies < UNREAD then return nil end
    local who = quota.owner(c, job.metadata)
    local most = quota.limit(c, who, 'max_unread')
    if replies >= most then return {'unread', who.agent, replies, most} end
end

local function any_unread(c, jobs)
    for _, job in ipairs(jobs) do
        if unread(c, job) then return true end
    end
    return false
end

local function refusal_of(c, job, waiting, limit, load, refuses)
    return quota.is_stopped(c, job.metadata) or unread(c, job) or quota.refuses_nice(c, job) or unserved_core(c, job, refuses)
        or waiting >= limit and {'full', waiting, limit}
        or not quota.has_quotas(c) and not quota.is_roomy(limit, waiting + 1) and {'full', waiting, waiting}
        or quota.refuses(c, job, load)
end

-- Take of the new ones what may be taken, in their order; the others get a `refusal`.
local function admit(c, fresh)
    local limit, unserved, flow = unpack(call('HMGET', c.policy, 'max_waiting', 'unserved_core', 'flow'))
    c.flow = flow
    limit = tonumber(limit or '100000')
    local waiting, taken, load, refuses = waiting_in(c), {}, {}, unserved == 'refuse'
    c.max_waiting = limit
    local anything = not quota.has_quotas(c) and not c.stops and waiting + #fresh <= limit
        and quota.is_roomy(limit, waiting + #fresh) and not refuses and not any_unread(c, fresh) -- but for cores
    for _, job in ipairs(fresh) do
        if not anything or job.needs ~= '' or string.find(job.metadata, '"nice":-', 1, true) then
            job.refusal = refusal_of(c, job, waiting + #taken, limit, load, refuses)
        end
        if not job.refusal then taken[#taken + 1] = job end
    end
    return taken
end

-- Whether all that is live is one program's, see turns.lua.
local function note_flow(c, taken)
    local flow = c.flow
    if not taken[1] then return end
    local changes = flow ~= '' and flow ~= taken[1].metadata
    if changes and call('EXISTS', c.live) == 0 then flow = '' end
    if not flow or flow == SEVERAL then return end
    for _, job in ipairs(taken) do
        if flow == '' then
            flow = job.metadata
        elseif job.metadata ~= flow and quota.owner(c, job.metadata).line ~= quota.owner(c, flow).line then
            flow = SEVERAL
            break
        end
    end
    if flow ~= c.flow then call('HSET', c.policy, 'flow', flow) end
end

local function enter(c, taken, iso)
    note_flow(c, taken)
    enter_deadlines(c, taken, iso)
    local batch = {lists = {}, live = {}, now = text(c, c.now), quotas = quota.has_quotas(c)}
    for _, job in ipairs(taken) do publish(c, job, iso, batch) end
    variadic('HSET', c.live, batch.live)
    for queue, ids in pairs(batch.lists) do
        variadic('RPUSH', queue, ids)
        call('SADD', c.p .. ':queues', queue)
    end
end

-- Why a job is not the one that has its id: that is another agent's, or was published with other data
-- (to the byte). One that comes twice in a batch hears the same twice.
local function differs(c, job)
    local first, data, metadata = job.first, nil, nil
    if first and not first.known then
        data, metadata = first.data, first.metadata
    else
        data, metadata = unpack(call('HMGET', job.key, 'data', 'aios_metadata'))
    end
    if not data then return nil end
    local owner = quota.owner(c, job.metadata)
    if quota.owner(c, metadata or nil).agent ~= owner.agent then return {'owned'} end
    if data ~= job.data and not failures.is_dropped(data) then return {'differs', data} end
end

local function outcome(c, job)
    if job.denied then return {'denied'} end
    if job.known then return differs(c, job) or rejoin(c, job) end
    if not job.first then return job.refusal or 1 end
    return job.first.refusal or differs(c, job) or rejoin(c, job)
end

register('submit', function(c)
    local iso, jobs, answer = take(c), read_rows(c, read.submission), {}
    local taken = admit(c, sort_jobs(c, proven(c, jobs)))
    enter(c, taken, iso)
    local all = #taken == #jobs
    for i, job in ipairs(jobs) do answer[i] = all and 1 or outcome(c, job) end
    return answer
end)
