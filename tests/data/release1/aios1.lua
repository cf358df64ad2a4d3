#!lua name=aios1

-- lib.lua: what the steps share. Each step begins with `local c = open(args)`: the context of one
-- call. All keys hang on the prefix (ARGV 1) and share its hash tag, so they lie in the slot of
-- KEYS[1]; queues/keys.py names the same keys (tests/integration/test_queue_keys.py compares).

local LIB = 'aios1_'
local WIP_SCORE = 4102444800 -- 2100: RQ's own clean-up must never take our jobs for abandoned
local CHUNK = 1000           -- arguments of one variadic command; Lua unpacks at most about 8,000
local LOOKAHEAD = 64         -- jobs for other cores that a claim looks past ...
local FAR_LOOKAHEAD = 4096   -- ... and where it finds none for its own among them
local CORE_TTL_MS = 60000    -- a core whose workers were silent this long is not served any more
local WORKER_TTL_S = 480     -- RQ's own worker record time to live
local REPLY_TTL_MS = 600000  -- of a reply list whose client is gone
local YIELDING_MS = 10000    -- a job told to yield has done so by then, or its worker is dead
local DEFAULT_DEADLINE_MS = 600000 -- of jobs that stock RQ tools enqueued

local function now_ms()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function open(args)
    local p, q = args[1], args[2]
    local own = p .. ':aios:'
    return {
        p = p, q = q, own = own, now = now_ms(), at = 3, args = args, journal = {},
        queue = p .. ':queue:' .. q,           -- list: all that waits
        wip = p .. ':wip:' .. q,               -- zset: RQ's started registry
        deferred = p .. ':deferred:' .. q,     -- zset: RQ's registry, shows what is held
        live = own .. 'live:' .. q,            -- hash: id -> clients that wait, space between
        leases = own .. 'leases:' .. q,        -- zset: id:attempt -> expiry ms
        deadlines = own .. 'deadlines:' .. q,  -- zset: id -> ms
        scores = own .. 'scores:' .. q,        -- zset: id -> the policy's score
        yielding = own .. 'yielding:' .. q,    -- zset: id -> ms when it was told to yield
        held = own .. 'held:' .. q,            -- zset: id -> ms since when
        parked = own .. 'parked:' .. q,        -- zset: id -> ms since when
        control = own .. 'control:' .. q,      -- hash: id -> what an operator wants of it
        suspects = own .. 'suspects:' .. q,    -- zset: id -> ms when it was first out of place
        quarantine = own .. 'quarantine:' .. q, -- zset: id -> ms; poison and foreign jobs
        policy = own .. 'policy:' .. q,        -- hash: PolicyRow
        cores = own .. 'cores',                -- hash: model name -> ms when last served
        scheduler = own .. 'scheduler',        -- hash: holder, epoch, until
        snapshots = own .. 'snapshots',        -- zset: id -> ms when written
        snapshot_bytes = own .. 'snapshot_bytes', -- hash: id -> size
        snapshot_total = own .. 'snapshot_total', -- string: sum of the sizes
    }
end

local function job_key(c, id) return c.p .. ':job:' .. id end
local function results_key(c, id) return c.p .. ':results:' .. id end
local function worker_key(c, name) return c.p .. ':worker:' .. name end
local function snapshot_key(c, id) return c.own .. 'snapshot:' .. id end

-- The next argument of the call.
local function take(c)
    local value = c.args[c.at]
    c.at = c.at + 1
    return value
end

-- `command key item...`, in chunks; items is a flat list.
local function variadic(command, key, items)
    for first = 1, #items, CHUNK do
        redis.call(command, key, unpack(items, first, math.min(first + CHUNK - 1, #items)))
    end
end

-- HMGET or ZMSCORE over a list of members of any length.
local function read_many(command, key, members)
    if #members <= CHUNK then
        return #members == 0 and {} or redis.call(command, key, unpack(members))
    end
    local all = {}
    for first = 1, #members, CHUNK do
        local part = redis.call(command, key, unpack(members, first, math.min(first + CHUNK - 1, #members)))
        for i = 1, #part do all[#all + 1] = part[i] end
    end
    return all
end

-- One transition. `detail`: metadata for submit and adopt, 'tokens,ran_ms' over all slices for
-- yield, hold and finish, the error's code for fail and cancel.
local function note(c, event, id, attempt, who, detail)
    c.journal[#c.journal + 1] = table.concat({event, id, attempt, who, detail}, '\t')
end

-- One XADD carries all transitions of the call.
local function write_journal(c)
    if #c.journal > 0 then
        redis.call('XADD', c.own .. 'journal', 'MAXLEN', '~', 200000, '*',
            'q', c.q, 't', table.concat(c.journal, '\n'))
    end
end

local function count(value) return tonumber(value) or 0 end

-- Replies of one call, gathered by client.
local function reply_to(c, clients, message)
    if not clients or clients == '' then return end
    c.replies = c.replies or {}
    for client in string.gmatch(clients, '%S+') do
        local box = c.replies[client]
        if not box then box = {}; c.replies[client] = box end
        box[#box + 1] = message
    end
end

local function send_replies(c)
    for client, box in pairs(c.replies or {}) do
        local key = c.own .. 'reply:' .. client
        variadic('RPUSH', key, box)
        redis.call('PEXPIRE', key, REPLY_TTL_MS)
    end
end

local function drop_snapshots(c, ids)
    local sizes = read_many('HMGET', c.snapshot_bytes, ids)
    for i = 1, #ids do
        if sizes[i] then
            redis.call('UNLINK', snapshot_key(c, ids[i]))
            redis.call('HDEL', c.snapshot_bytes, ids[i])
            redis.call('ZREM', c.snapshots, ids[i])
            redis.call('DECRBY', c.snapshot_total, sizes[i])
        end
    end
end

local function keep_snapshot(c, id, data)
    if data == '' then return end
    local old = count(redis.call('HGET', c.snapshot_bytes, id))
    redis.call('SET', snapshot_key(c, id), data)
    redis.call('HSET', c.snapshot_bytes, id, #data)
    redis.call('ZADD', c.snapshots, c.now, id)
    redis.call('INCRBY', c.snapshot_total, #data - old)
end

-- Which of these (id, attempt) hold their lease: list of scores, false where it is gone.
local function held_leases(c, members)
    return read_many('ZMSCORE', c.leases, members)
end

local function error_reply(id, body)
    return '{"kind":"reply","id":' .. cjson.encode(id) .. ',"error":' .. body .. '}'
end

-- End a job that no worker ends: cancelled, past its deadline, poison, deleted by a stock tool.
-- `status` is RQ's. Whoever waits hears `body`, an encoded ErrorBody. The worker that runs it
-- loses its lease and is told to stop. `lent`: the attempt of its lease, where the caller knows
-- it: the record of a deleted job does not.
local function terminate(c, id, event, status, body, iso, lent)
    local job = job_key(c, id)
    local attempt, worker, was = unpack(redis.call('HMGET', job, 'aios_attempt', 'worker_name', 'status'))
    attempt = lent or attempt or '0'
    local member = id .. ':' .. attempt
    if redis.call('ZREM', c.leases, member) == 1 then
        redis.call('ZREM', c.wip, member)
        if worker then
            redis.call('PUBLISH', c.p .. ':pubsub:' .. worker,
                '{"command":"stop-job","job_id":' .. cjson.encode(id) .. '}')
        end
    elseif was == 'queued' or not was then
        redis.call('LREM', c.queue, 0, id)
    end
    redis.call('ZREM', c.held, id)
    redis.call('ZREM', c.parked, id)
    redis.call('ZREM', c.deferred, id)
    redis.call('ZREM', c.deadlines, id)
    redis.call('ZREM', c.scores, id)
    redis.call('ZREM', c.yielding, id)
    redis.call('ZREM', c.suspects, id)
    redis.call('HDEL', c.control, id)
    drop_snapshots(c, {id})
    local reply = error_reply(id, body)
    reply_to(c, redis.call('HGET', c.live, id), reply)
    redis.call('HDEL', c.live, id)
    if was then
        local ttl_s = 3600
        redis.call('HSET', job, 'status', status, 'ended_at', iso, 'aios_reply', reply)
        redis.call('EXPIRE', job, ttl_s)
        redis.call('ZADD', c.p .. ':' .. status .. ':' .. c.q, math.floor(c.now / 1000) + ttl_s, id)
    else
        redis.call('UNLINK', job) -- what its worker still charged to it
    end
    note(c, event, id, attempt, '', cjson.decode(body).code or '')
end

-- Redis has no calendar: RQ's time stamps come from the caller, or, in sweeps, from here.
local function iso_of(ms)
    local days = math.floor(ms / 86400000)
    local rest = ms - days * 86400000
    local z = days + 719468 -- civil date from days, Hinnant's algorithm
    local era = math.floor(z / 146097)
    local doe = z - era * 146097
    local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
    local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
    local mp = math.floor((5 * doy + 2) / 153)
    local day = doy - math.floor((153 * mp + 2) / 5) + 1
    local month = mp < 10 and mp + 3 or mp - 9
    local year = yoe + era * 400 + (month <= 2 and 1 or 0)
    return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06dZ', year, month, day,
        math.floor(rest / 3600000), math.floor(rest / 60000) % 60,
        math.floor(rest / 1000) % 60, (rest % 1000) * 1000)
end

local function serves(cores, core)
    return not core or core == '' or string.find(cores, ',' .. core .. ',', 1, true) ~= nil
end

local function leads(c, epoch)
    return redis.call('HGET', c.scheduler, 'epoch') == epoch
end

local function adopt(c, id, iso)
    local job = job_key(c, id)
    local metadata = redis.call('HGET', job, 'aios_metadata')
    redis.call('HSET', c.live, id, '')
    redis.call('HDEL', job, 'aios_reply')
    redis.call('PERSIST', job)
    redis.call('HSET', job, 'aios_submitted_ms', c.now, 'aios_ready_ms', c.now, 'enqueued_at', iso,
        'aios_losses', 0, 'aios_deadline_ms', c.now + DEFAULT_DEADLINE_MS)
    redis.call('ZADD', c.deadlines, c.now + DEFAULT_DEADLINE_MS, id)
    note(c, 'adopt', id, '', '', metadata or '')
end

-- Wake-ups need no command of ours: clients block on the lists that these steps push to.
local function register(step, body, flags)
    local function callback(_, args) return body(open(args)) end
    if flags then
        redis.register_function{function_name = LIB .. step, callback = callback, flags = flags}
    else
        redis.register_function(LIB .. step, callback)
    end
end

-- submit.lua: publish jobs, all or none; idempotent by id.
--
-- ARGV  prefix, module, now (ISO), n, then per job:
--       id, data, description, metadata (JSON), core, client, deadline_ms (from now)
--
-- Returns per job 1 new, 2 known and not ended, 3 ended: its stored reply was pushed again.
-- Or {'full', waiting, limit}, or {'core', name, served...}: then nothing was changed.

local function served_cores(c)
    local pairs_, names = redis.call('HGETALL', c.cores), {}
    for i = 1, #pairs_, 2 do
        if c.now - pairs_[i + 1] < CORE_TTL_MS then names[pairs_[i]] = true end
    end
    return names
end

local function unserved_core(c, jobs)
    local names
    for _, job in ipairs(jobs) do
        if job.core ~= '' then
            names = names or served_cores(c)
            if not names[job.core] then
                local answer = {'core', job.core}
                for name in pairs(names) do answer[#answer + 1] = name end
                return answer
            end
        end
    end
end

local function read_jobs(c)
    local iso, n, jobs = take(c), tonumber(take(c)), {}
    for i = 1, n do
        jobs[i] = {id = take(c), data = take(c), description = take(c), metadata = take(c),
            core = take(c), client = take(c), deadline_ms = tonumber(take(c))}
    end
    return iso, jobs
end

-- One more client waits for a job that exists already.
local function rejoin(c, job)
    local clients = redis.call('HGET', c.live, job.id)
    if clients then
        if job.client ~= '' and not string.find(' ' .. clients .. ' ', ' ' .. job.client .. ' ', 1, true) then
            redis.call('HSET', c.live, job.id, clients == '' and job.client or clients .. ' ' .. job.client)
        end
        return 2
    end
    local reply = redis.call('HGET', job_key(c, job.id), 'aios_reply')
    if reply then
        reply_to(c, job.client, reply)
        return 3
    end
    redis.call('HSET', c.live, job.id, job.client) -- a stock tool put it here
    return 2
end

local function publish(c, job, iso, batch)
    local deadline = c.now + job.deadline_ms
    local hash = {'created_at', iso, 'enqueued_at', iso, 'data', job.data, 'origin', c.q,
        'description', job.description, 'timeout', math.ceil(job.deadline_ms / 1000),
        'status', 'queued', 'aios_metadata', job.metadata, 'aios_submitted_ms', c.now,
        'aios_ready_ms', c.now, 'aios_deadline_ms', deadline}
    if job.core ~= '' then
        hash[#hash + 1] = 'aios_core'
        hash[#hash + 1] = job.core
    end
    redis.call('HSET', job_key(c, job.id), unpack(hash))
    batch.queue[#batch.queue + 1] = job.id
    batch.live[#batch.live + 1] = job.id
    batch.live[#batch.live + 1] = job.client
    batch.deadlines[#batch.deadlines + 1] = deadline
    batch.deadlines[#batch.deadlines + 1] = job.id
    note(c, 'submit', job.id, '', job.client, job.metadata)
end

local function any_known(c, jobs)
    local keys = {}
    for i, job in ipairs(jobs) do keys[i] = job_key(c, job.id) end
    for first = 1, #keys, CHUNK do
        if redis.call('EXISTS', unpack(keys, first, math.min(first + CHUNK - 1, #keys))) > 0 then
            return true
        end
    end
    return false
end

register('submit', function(c)
    local iso, jobs = read_jobs(c)
    local check, fresh, seen = any_known(c, jobs), {}, {}
    for _, job in ipairs(jobs) do
        if seen[job.id] or (check and redis.call('EXISTS', job_key(c, job.id)) == 1) then
            job.known = true
        else
            fresh[#fresh + 1] = job
        end
        seen[job.id] = true
    end
    local refusal = unserved_core(c, fresh) -- one that is known was taken before: sent again
    if refusal then return refusal end
    local limit = tonumber(redis.call('HGET', c.policy, 'max_waiting') or '100000')
    local waiting = redis.call('LLEN', c.queue)
    if #fresh > 0 and waiting + #fresh > limit then return {'full', waiting, limit} end
    local batch = {queue = {}, live = {}, deadlines = {}}
    for _, job in ipairs(fresh) do publish(c, job, iso, batch) end
    variadic('HSET', c.live, batch.live)
    variadic('ZADD', c.deadlines, batch.deadlines)
    variadic('RPUSH', c.queue, batch.queue)
    if #fresh > 0 then redis.call('SADD', c.p .. ':queues', c.queue) end
    local answer = {}
    for i, job in ipairs(jobs) do answer[i] = job.known and rejoin(c, job) or 1 end
    send_replies(c)
    write_journal(c)
    return answer
end)

-- claim.lua: lend the first jobs that this worker can run. Shared with finish and yield, which
-- claim in the same step; `adopt_one` lends one job to a stock RQ worker.
--
-- ARGV  prefix, module, worker, now (ISO), want, lease_ms, cores (comma between)
--
-- Returns one row per lease: id, attempt, data, trusted, waited for, queued_ms, ran_ms, slices,
-- suspensions, losses, deadline_ms (from now), has snapshot.

local JOB_FIELDS = {'data', 'status', 'aios_metadata', 'aios_core', 'aios_attempt', 'aios_ready_ms',
    'aios_queued_ms', 'aios_ran_ms', 'aios_slices', 'aios_suspensions', 'aios_losses',
    'aios_deadline_ms'}

local function read_job(c, id)
    local f = redis.call('HMGET', job_key(c, id), unpack(JOB_FIELDS))
    if not f[1] then return nil end
    return {id = id, data = f[1], status = f[2], metadata = f[3], core = f[4], attempt = count(f[5]),
        ready_ms = tonumber(f[6]) or c.now, queued_ms = count(f[7]), ran_ms = count(f[8]),
        slices = count(f[9]), suspensions = count(f[10]), losses = count(f[11]),
        deadline_ms = tonumber(f[12]) or c.now + DEFAULT_DEADLINE_MS}
end

-- Only what waits may be lent: a stock tool may have pushed an id that runs, or has ended.
local function lendable(c, job)
    if not job or job.status ~= 'queued' then return false end
    return job.attempt == 0 or not redis.call('ZSCORE', c.leases, job.id .. ':' .. job.attempt)
end

-- Go through the first ids of the queue: what to lend, what to take off the list, and how many of
-- these at the very head.
local function sift(c, ids, want, cores)
    local chosen, removed, passed = {}, {}, 0
    local seen, prefix = {}, 0
    for i, id in ipairs(ids) do
        if #chosen == want then break end
        local job = not seen[id] and read_job(c, id) or nil
        seen[id] = true
        if not lendable(c, job) then
            removed[#removed + 1] = id
        elseif serves(cores, job.core) then
            chosen[#chosen + 1] = job
            removed[#removed + 1] = id
        else
            passed = passed + 1
        end
        if passed == 0 then prefix = i end
    end
    return chosen, removed, prefix
end

-- Choose up to `want` from the head; drop what cannot be lent to anyone, pass by what is for
-- other cores: LOOKAHEAD jobs, or, where all of them are for others, many more.
local function choose(c, want, cores)
    local chosen, removed, prefix
    for _, ahead in ipairs({LOOKAHEAD, FAR_LOOKAHEAD}) do
        local ids = redis.call('LRANGE', c.queue, 0, want + ahead - 1)
        chosen, removed, prefix = sift(c, ids, want, cores)
        if #chosen > 0 or #ids < want + ahead then break end
    end
    if prefix > 0 then redis.call('LTRIM', c.queue, prefix, -1) end
    for i = prefix + 1, #removed do redis.call('LREM', c.queue, 1, removed[i]) end
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

local function lend(c, worker, iso, want, lease_ms, cores)
    if want <= 0 or redis.call('EXISTS', c.p .. ':suspended') == 1 then return {} end
    local jobs = choose(c, want, ',' .. cores .. ',')
    if #jobs == 0 then return {} end
    local ids, leases, wip, rows = {}, {}, {}, {}
    for i, job in ipairs(jobs) do ids[i] = job.id end
    local clients = read_many('HMGET', c.live, ids)
    local sizes = read_many('HMGET', c.snapshot_bytes, ids)
    take_in(c, jobs, iso, clients)
    for i, job in ipairs(jobs) do
        local attempt, queued_ms = job.attempt + 1, job.queued_ms + c.now - job.ready_ms
        local member = job.id .. ':' .. attempt
        redis.call('HSET', job_key(c, job.id), 'status', 'started', 'worker_name', worker,
            'started_at', iso, 'aios_attempt', attempt, 'aios_queued_ms', queued_ms)
        leases[#leases + 1] = c.now + lease_ms
        leases[#leases + 1] = member
        wip[#wip + 1] = WIP_SCORE
        wip[#wip + 1] = member
        rows[i] = {job.id, attempt, job.data, job.metadata and 1 or 0, clients[i] ~= '' and 1 or 0,
            queued_ms, job.ran_ms, job.slices, job.suspensions, job.losses,
            job.deadline_ms - c.now, sizes[i] and 1 or 0}
        note(c, 'claim', job.id, attempt, worker, '')
    end
    variadic('ZADD', c.leases, leases)
    variadic('ZADD', c.wip, wip)
    return rows
end

register('claim', function(c)
    local worker, iso = take(c), take(c)
    local rows = lend(c, worker, iso, tonumber(take(c)), tonumber(take(c)), take(c))
    write_journal(c)
    return rows
end)

-- ARGV  prefix, module, worker, now (ISO), lease_ms, id
-- A stock RQ worker popped the job and runs our entry point: give it the lease, leave RQ's own
-- fields to it. Returns one row, or an empty list: it ended, or another worker runs it.
register('adopt', function(c)
    local worker, iso, lease_ms, id = take(c), take(c), tonumber(take(c)), take(c)
    local job = read_job(c, id)
    local client = redis.call('HGET', c.live, id)
    if not job or (job.attempt > 0 and redis.call('ZSCORE', c.leases, id .. ':' .. job.attempt)) then
        return {}
    end
    if not client and redis.call('HEXISTS', job_key(c, id), 'aios_reply') == 1 then return {} end
    local clients = {client}
    take_in(c, {job}, iso, clients)
    local attempt, queued_ms = job.attempt + 1, job.queued_ms + c.now - job.ready_ms
    redis.call('HSET', job_key(c, id), 'aios_attempt', attempt, 'aios_queued_ms', queued_ms)
    redis.call('ZADD', c.leases, c.now + lease_ms, id .. ':' .. attempt)
    redis.call('LREM', c.queue, 0, id)
    for _, place in ipairs({c.suspects, c.held, c.deferred}) do redis.call('ZREM', place, id) end
    note(c, 'claim', id, attempt, worker, '')
    write_journal(c)
    return {{id, attempt, job.data, job.metadata and 1 or 0, clients[1] ~= '' and 1 or 0, queued_ms,
        job.ran_ms, job.slices, job.suspensions, job.losses, job.deadline_ms - c.now,
        redis.call('HEXISTS', c.snapshot_bytes, id)}}
end)

-- finish.lua: end jobs: result, RQ's records, statistics and the reply, and claim the next ones.
--
-- ARGV  prefix, module, worker, now (ISO), want, lease_ms, cores, result_ttl_s, failure_ttl_s,
--       external (1: a stock RQ worker keeps RQ's records itself), n, then per job:
--       id, attempt, status (finished | failed), reply, result (as RQ stores it), ran_ms,
--       tokens, quarantine (0 | 1)
--
-- Returns {accepted (0 | 1) per job, leases as claim.lua}. A job whose lease is gone is left
-- alone: another worker answers it.

local function record_in_rq(c, job, worker, iso, ttl_s)
    redis.call('HSET', job_key(c, job.id), 'status', job.status, 'ended_at', iso,
        'aios_reply', job.reply)
    local ok = job.status == 'finished'
    redis.call('XADD', results_key(c, job.id), '*', 'type', ok and 1 or 2, 'worker_name', worker,
        ok and 'return_value' or 'exc_string', job.result, 'execution_id', job.attempt)
    redis.call('EXPIRE', job_key(c, job.id), ttl_s)
    redis.call('EXPIRE', results_key(c, job.id), ttl_s)
end

local function forget(c, done)
    local ids, members = {}, {}
    for i, job in ipairs(done) do ids[i], members[i] = job.id, job.id .. ':' .. job.attempt end
    variadic('ZREM', c.leases, members)
    variadic('ZREM', c.wip, members)
    variadic('ZREM', c.deadlines, ids)
    variadic('HDEL', c.live, ids)
    for _, key in ipairs({c.scores, c.yielding}) do
        if redis.call('EXISTS', key) == 1 then variadic('ZREM', key, ids) end
    end
    if redis.call('EXISTS', c.control) == 1 then variadic('HDEL', c.control, ids) end
    drop_snapshots(c, ids)
end

local function count_work(c, worker, done)
    local good, ms = 0, 0
    for _, job in ipairs(done) do
        if job.status == 'finished' then good = good + 1 end
        ms = ms + job.ran_ms
    end
    local key = worker_key(c, worker)
    if redis.call('EXISTS', key) == 0 then return end
    if good > 0 then redis.call('HINCRBY', key, 'successful_job_count', good) end
    if #done > good then redis.call('HINCRBY', key, 'failed_job_count', #done - good) end
    redis.call('HINCRBYFLOAT', key, 'total_working_time', ms / 1000)
end

local function read_endings(c)
    local n, jobs, members, ids = tonumber(take(c)), {}, {}, {}
    for i = 1, n do
        local job = {id = take(c), attempt = take(c), status = take(c), reply = take(c),
            result = take(c), ran_ms = tonumber(take(c)), tokens = tonumber(take(c)), quarantine = take(c)}
        jobs[i], members[i], ids[i] = job, job.id .. ':' .. job.attempt, job.id
    end
    return jobs, held_leases(c, members), read_many('HMGET', c.live, ids)
end

-- What the job used in all its slices. Only one that was checkpointed was ever charged before.
local function total_use(c, job)
    if redis.call('HEXISTS', c.snapshot_bytes, job.id) == 0 then
        return job.tokens .. ',' .. job.ran_ms
    end
    local f = redis.call('HMGET', job_key(c, job.id), 'aios_tokens', 'aios_ran_ms')
    return count(f[1]) + job.tokens .. ',' .. count(f[2]) + job.ran_ms
end

-- Why a job failed, for the journal: the code of the error that its reply carries.
local function reason(job)
    if job.status == 'finished' then return '' end
    local readable, reply = pcall(cjson.decode, job.reply)
    local body = readable and type(reply) == 'table' and reply.error
    return ',' .. (type(body) == 'table' and tostring(body.code) or 'failed')
end

register('finish', function(c)
    local worker, iso, want, lease_ms, cores = take(c), take(c), tonumber(take(c)), tonumber(take(c)), take(c)
    local ttl_s = {finished = tonumber(take(c)), failed = tonumber(take(c))}
    local external = take(c) == '1'
    local jobs, leases, clients = read_endings(c)
    local checkpoints = redis.call('EXISTS', c.snapshot_bytes) == 1
    local accepted, done, registry, seen = {}, {}, {finished = {}, failed = {}}, {}
    for i, job in ipairs(jobs) do
        accepted[i] = leases[i] and not seen[job.id] and 1 or 0
        if accepted[i] == 1 then
            seen[job.id] = true
            done[#done + 1] = job
            if external then
                redis.call('HSET', job_key(c, job.id), 'aios_reply', job.reply)
            else
                record_in_rq(c, job, worker, iso, ttl_s[job.status])
                local entries = registry[job.status]
                entries[#entries + 1] = math.floor(c.now / 1000) + ttl_s[job.status]
                entries[#entries + 1] = job.id
            end
            if job.quarantine == '1' then redis.call('ZADD', c.quarantine, c.now, job.id) end
            reply_to(c, clients[i], job.reply)
            note(c, job.status == 'finished' and 'finish' or 'fail', job.id, job.attempt, worker,
                (checkpoints and total_use(c, job) or job.tokens .. ',' .. job.ran_ms) .. reason(job))
        end
    end
    if #done > 0 then
        variadic('ZADD', c.p .. ':finished:' .. c.q, registry.finished)
        variadic('ZADD', c.p .. ':failed:' .. c.q, registry.failed)
        forget(c, done)
        count_work(c, worker, done)
        send_replies(c)
    end
    local rows = lend(c, worker, iso, want, lease_ms, cores)
    write_journal(c)
    return {accepted, rows}
end)

-- yield.lua: suspend running jobs: snapshot to Redis, back to the run queue, slot freed; and
-- claim the next ones.
--
-- ARGV  prefix, module, worker, now (ISO), want, lease_ms, cores, n, then per job:
--       id, attempt, reason (yield | hold | drain), snapshot ('' keeps the last), ran_ms, tokens
--
-- yield: to the tail. drain: to the head, its worker stops and it did not use up its turn.
-- hold: out of the run queue, until released. What the operator wants by now decides: one that was
-- told to yield and is to be held since is held, and one that was released meanwhile is not.
-- Returns {accepted (0 | 1) per job, leases as claim.lua}.

local function as_wished(c, job)
    if redis.call('HGET', c.control, job.id) == 'hold' then return 'hold' end
    return job.reason == 'hold' and 'yield' or job.reason
end

local function suspend(c, job)
    local key = job_key(c, job.id)
    local f = redis.call('HMGET', key, 'aios_ran_ms', 'aios_tokens', 'aios_slices', 'aios_suspensions')
    local member = job.id .. ':' .. job.attempt
    redis.call('ZREM', c.leases, member)
    redis.call('ZREM', c.wip, member)
    redis.call('ZREM', c.yielding, job.id)
    redis.call('ZREM', c.scores, job.id)
    redis.call('HDEL', c.control, job.id)
    keep_snapshot(c, job.id, job.snapshot)
    local ran_ms, tokens = count(f[1]) + job.ran_ms, count(f[2]) + job.tokens
    redis.call('HSET', key, 'status', job.reason == 'hold' and 'deferred' or 'queued',
        'worker_name', '', 'aios_ready_ms', c.now, 'aios_ran_ms', ran_ms, 'aios_tokens', tokens,
        'aios_slices', count(f[3]) + 1, 'aios_suspensions', count(f[4]) + 1)
    if job.reason == 'hold' then
        redis.call('ZADD', c.held, c.now, job.id)
        redis.call('ZADD', c.deferred, WIP_SCORE, job.id)
    else
        redis.call(job.reason == 'drain' and 'LPUSH' or 'RPUSH', c.queue, job.id)
    end
    return tokens .. ',' .. ran_ms
end

register('yield', function(c)
    local worker, iso, want, lease_ms, cores = take(c), take(c), tonumber(take(c)), tonumber(take(c)), take(c)
    local n, jobs, members, accepted, seen = tonumber(take(c)), {}, {}, {}, {}
    for i = 1, n do
        local job = {id = take(c), attempt = take(c), reason = take(c), snapshot = take(c),
            ran_ms = tonumber(take(c)), tokens = tonumber(take(c))}
        jobs[i], members[i] = job, job.id .. ':' .. job.attempt
    end
    local leases = held_leases(c, members)
    for i, job in ipairs(jobs) do
        accepted[i] = leases[i] and not seen[job.id] and 1 or 0
        if accepted[i] == 1 then
            seen[job.id] = true
            job.reason = as_wished(c, job)
            note(c, job.reason == 'hold' and 'hold' or 'yield', job.id, job.attempt, worker,
                suspend(c, job))
        end
    end
    local rows = lend(c, worker, iso, want, lease_ms, cores)
    write_journal(c)
    return {accepted, rows}
end)

-- slice.lua: a slice has ended: charge it, keep the checkpoint, renew the lease, and say whether
-- somebody more deserving waits for the slot.
--
-- ARGV  prefix, module, worker, want (unused), lease_ms, cores, n, then per job:
--       id, attempt, ran_ms, tokens (both since the last charge), checkpoint ('' keeps the last)
--
-- Returns per job go | yield | hold | lost.

local HEAD = 16 -- waiting jobs that are looked at for one that this worker can run

-- The first waiting jobs that this worker can run: how many (up to HEAD), and the first one's id.
local function runnable(c, cores)
    local ids, n, first = redis.call('LRANGE', c.queue, 0, HEAD - 1), 0, nil
    for _, id in ipairs(ids) do
        if serves(cores, redis.call('HGET', job_key(c, id), 'aios_core')) then
            n = n + 1
            first = first or id
        end
    end
    return n, first
end

local function outranked(c, id, first)
    local head = redis.call('ZSCORE', c.scores, first)
    local mine = redis.call('ZSCORE', c.scores, id)
    return head and mine and tonumber(head) < tonumber(mine)
end

-- Each waiting job can take one slot only: those told to yield a moment ago count.
local function must_yield(c, id, preempt, cores)
    if preempt == 'none' then return false end
    local waiting, first = runnable(c, cores)
    if waiting == 0 or redis.call('EXISTS', c.p .. ':suspended') == 1 then return false end
    redis.call('ZREMRANGEBYSCORE', c.yielding, '-inf', c.now - YIELDING_MS)
    local room = redis.call('LLEN', c.queue)
    if waiting < HEAD then room = waiting end
    if redis.call('ZCARD', c.yielding) >= room then return false end
    return preempt == 'waiting' or outranked(c, id, first)
end

local function charge(c, id, ran_ms, tokens)
    local f = redis.call('HMGET', job_key(c, id), 'aios_ran_ms', 'aios_tokens')
    redis.call('HSET', job_key(c, id), 'aios_ran_ms', count(f[1]) + ran_ms,
        'aios_tokens', count(f[2]) + tokens)
end

register('slice', function(c)
    take(c); take(c)
    local lease_ms, cores = tonumber(take(c)), ',' .. take(c) .. ','
    local n, jobs, members, ids, verdicts = tonumber(take(c)), {}, {}, {}, {}
    for i = 1, n do
        local job = {id = take(c), attempt = take(c), ran_ms = tonumber(take(c)),
            tokens = tonumber(take(c)), checkpoint = take(c)}
        jobs[i], members[i], ids[i] = job, job.id .. ':' .. job.attempt, job.id
    end
    local leases, wishes = held_leases(c, members), read_many('HMGET', c.control, ids)
    local preempt = redis.call('HGET', c.policy, 'preempt') or 'waiting'
    for i, job in ipairs(jobs) do
        if not leases[i] then
            verdicts[i] = 'lost'
        else
            charge(c, job.id, job.ran_ms, job.tokens)
            keep_snapshot(c, job.id, job.checkpoint)
            redis.call('ZADD', c.leases, 'XX', c.now + lease_ms, members[i])
            if wishes[i] then
                verdicts[i] = 'hold'
            elseif must_yield(c, job.id, preempt, cores) then
                redis.call('ZADD', c.yielding, c.now, job.id)
                verdicts[i] = 'yield'
            else
                verdicts[i] = 'go'
            end
        end
    end
    return verdicts
end)

-- renew.lua: renew all leases of a worker, and its heartbeat, in one call every third of a lease.
--
-- ARGV  prefix, module, worker, now (ISO), lease_ms, cores, n, then per job: id, attempt
--
-- Returns per job go | hold | lost. Jobs that live to see a renewal get an RQ execution record, by
-- which RQ's stop-execution command finds their worker; the shorter ones are not worth it. The
-- index `worker:<name>:executions` stays away: with it rq-dashboard (0.9) reads the current job's
-- data as a pickle, whatever serializer it was given, and its page of workers answers 500.

local function show_executions(c, worker, members, lease_ms)
    for _, member in ipairs(members) do
        local id, attempt = string.match(member, '^(.*):(%d+)$')
        local key = c.p .. ':execution:' .. member
        redis.call('HSET', key, 'id', attempt, 'job_id', id, 'worker_name', worker,
            'created_at', c.now / 1000, 'last_heartbeat', c.now / 1000)
        redis.call('PEXPIRE', key, lease_ms)
    end
end

register('renew', function(c)
    local worker, iso, lease_ms, cores = take(c), take(c), tonumber(take(c)), take(c)
    local n, members, ids, verdicts, kept, renewed = tonumber(take(c)), {}, {}, {}, {}, {}
    for i = 1, n do
        ids[i] = take(c)
        members[i] = ids[i] .. ':' .. take(c)
    end
    local leases, wishes = held_leases(c, members), read_many('HMGET', c.control, ids)
    for i, member in ipairs(members) do
        if leases[i] then
            renewed[#renewed + 1] = c.now + lease_ms
            renewed[#renewed + 1] = member
            kept[#kept + 1] = member
            verdicts[i] = wishes[i] and 'hold' or 'go'
        else
            verdicts[i] = 'lost'
        end
    end
    variadic('ZADD', c.leases, renewed)
    local key = worker_key(c, worker)
    redis.call('HSET', key, 'last_heartbeat', iso, 'state', n > 0 and 'busy' or 'idle',
        'aios_seen_ms', c.now, 'aios_lease_ms', lease_ms)
    redis.call('EXPIRE', key, WORKER_TTL_S)
    for core in string.gmatch(cores, '[^,]+') do redis.call('HSET', c.cores, core, c.now) end
    show_executions(c, worker, kept, lease_ms)
    return verdicts
end)

-- emit.lua: push streamed chunks to whoever waits; those of a lost lease are dropped.
--
-- ARGV  prefix, module, n, then per chunk: id, attempt, chunk
-- Returns how many were pushed.

register('emit', function(c)
    local n, ids, members, chunks, pushed = tonumber(take(c)), {}, {}, {}, 0
    for i = 1, n do
        ids[i] = take(c)
        members[i] = ids[i] .. ':' .. take(c)
        chunks[i] = take(c)
    end
    local leases, clients = held_leases(c, members), read_many('HMGET', c.live, ids)
    for i = 1, n do
        if leases[i] then
            reply_to(c, clients[i], chunks[i])
            pushed = pushed + 1
        end
    end
    send_replies(c)
    return pushed
end)

-- attach.lua: one more client hears of a job.
--
-- ARGV  prefix, module, id, client
-- Returns {state, reply}: the stored reply when the job ended, else false; state `unknown` when
-- there is no such job, or its reply has expired.

local function state_of(c, id, status, suspensions)
    if status == 'queued' then return count(suspensions) > 0 and 'suspended' or 'queued' end
    if status == 'started' then return 'running' end
    if status == 'deferred' then
        return redis.call('ZSCORE', c.parked, id) and 'parked' or 'held'
    end
    if status == 'finished' then return 'finished' end
    if status == 'canceled' then return 'cancelled' end
    return 'failed'
end

register('attach', function(c)
    local id, client = take(c), take(c)
    local status, reply, suspensions = unpack(redis.call('HMGET', job_key(c, id), 'status',
        'aios_reply', 'aios_suspensions'))
    local clients = redis.call('HGET', c.live, id)
    if not clients and not reply then return {'unknown', false} end
    if not clients then return {state_of(c, id, status, suspensions), reply} end
    if client ~= '' and not string.find(' ' .. clients .. ' ', ' ' .. client .. ' ', 1, true) then
        redis.call('HSET', c.live, id, clients == '' and client or clients .. ' ' .. client)
    end
    return {state_of(c, id, status, suspensions), false}
end)

-- cancel.lua: end jobs that wait, run, or are held; whoever waits hears it at once.
--
-- ARGV  prefix, module, now (ISO), event (cancel | fail), error body (JSON), id...
-- Returns per job done | ended | unknown.

register('cancel', function(c)
    local iso, event, body = take(c), take(c), take(c)
    local answer = {}
    while c.at <= #c.args do
        local id = take(c)
        if redis.call('HEXISTS', c.live, id) == 1 then
            terminate(c, id, event, event == 'cancel' and 'canceled' or 'failed', body, iso)
            answer[#answer + 1] = 'done'
        else
            answer[#answer + 1] = redis.call('EXISTS', job_key(c, id)) == 1 and 'ended' or 'unknown'
        end
    end
    send_replies(c)
    write_journal(c)
    return answer
end)

-- hold.lua: take jobs out of the run queue until they are released. A running one is told at
-- its next slice end or renewal.
--
-- ARGV  prefix, module, id...
-- Returns per job done | ended | unknown.

local function hold(c, id)
    local job = job_key(c, id)
    local status, attempt, ready = unpack(redis.call('HMGET', job, 'status', 'aios_attempt', 'aios_ready_ms'))
    if status == 'started' then
        redis.call('HSET', c.control, id, 'hold')
    elseif status == 'queued' then
        redis.call('LREM', c.queue, 0, id)
        redis.call('ZADD', c.held, c.now, id)
        redis.call('ZADD', c.deferred, WIP_SCORE, id)
        redis.call('HINCRBY', job, 'aios_queued_ms', c.now - (tonumber(ready) or c.now))
        redis.call('HSET', job, 'status', 'deferred')
        note(c, 'hold', id, attempt or '0', '', '')
    end
end

register('hold', function(c)
    local answer = {}
    while c.at <= #c.args do
        local id = take(c)
        if redis.call('HEXISTS', c.live, id) == 1 then
            hold(c, id)
            answer[#answer + 1] = 'done'
        else
            answer[#answer + 1] = redis.call('EXISTS', job_key(c, id)) == 1 and 'ended' or 'unknown'
        end
    end
    write_journal(c)
    return answer
end)

-- release.lua: put held jobs back into the run queue.
--
-- ARGV  prefix, module, id...
-- Returns per job done | ended | unknown. One that runs and was to be held goes on.

register('release', function(c)
    local answer = {}
    while c.at <= #c.args do
        local id = take(c)
        local job = job_key(c, id)
        if redis.call('HEXISTS', c.live, id) == 1 then
            redis.call('HDEL', c.control, id)
            if redis.call('ZREM', c.held, id) == 1 then
                redis.call('ZREM', c.deferred, id)
                redis.call('HSET', job, 'status', 'queued', 'aios_ready_ms', c.now)
                redis.call('RPUSH', c.queue, id)
                note(c, 'release', id, redis.call('HGET', job, 'aios_attempt') or '0', '', '')
            end
            answer[#answer + 1] = 'done'
        else
            answer[#answer + 1] = redis.call('EXISTS', job) == 1 and 'ended' or 'unknown'
        end
    end
    write_journal(c)
    return answer
end)

-- nice.lua: change the nice value of jobs. Their score goes; the scheduler gives a new one.
--
-- ARGV  prefix, module, nice, id...
-- Returns per job done | ended | unknown.

register('nice', function(c)
    local nice, answer = take(c), {}
    while c.at <= #c.args do
        local id = take(c)
        if redis.call('HEXISTS', c.live, id) == 1 then
            redis.call('HSET', job_key(c, id), 'aios_nice', nice)
            redis.call('ZREM', c.scores, id)
            answer[#answer + 1] = 'done'
        else
            answer[#answer + 1] = redis.call('EXISTS', job_key(c, id)) == 1 and 'ended' or 'unknown'
        end
    end
    return answer
end)

-- lead.lua: take or renew the scheduler's lease. A new holder gets the next epoch, which fences
-- every change the old one may still send.
--
-- ARGV  prefix, module, holder, lease_ms
-- Returns {epoch, leading (0 | 1), now_ms, began (0 | 1: with this call)}.

register('lead', function(c)
    local holder, lease_ms = take(c), tonumber(take(c))
    local current, epoch, until_ms = unpack(redis.call('HMGET', c.scheduler, 'holder', 'epoch', 'until'))
    epoch = count(epoch)
    if current ~= holder then
        if current and count(until_ms) > c.now then return {epoch, 0, c.now, 0} end
        epoch = epoch + 1
    end
    redis.call('HSET', c.scheduler, 'holder', holder, 'epoch', epoch, 'until', c.now + lease_ms)
    return {epoch, 1, c.now, current ~= holder and 1 or 0}
end)

-- reorder.lua: put jobs at the head of the run queue, in this order, with their scores.
--
-- ARGV  prefix, module, epoch, head, tail, n, then n times: id, score of the jobs to put in order;
--       then id, score of jobs that get their score and stay where they are
-- head, tail: the ids to order are looked for among that many at either end of the list, and what
-- lies between is not touched: what a step costs in a long queue. head 0: the whole list.
-- Ids that do not wait any more are left out; all others keep their order behind.
-- Returns 1, or 0 when the epoch is over (nothing is changed).

-- Take the ends out of the list: what stood before the middle, and what stood behind it.
local function cut_ends(c, head, tail)
    if head == 0 or redis.call('LLEN', c.queue) <= head + tail then
        local all = redis.call('LRANGE', c.queue, 0, -1)
        redis.call('DEL', c.queue)
        return all, {}
    end
    local before, behind = redis.call('LPOP', c.queue, head), {}
    local backwards = tail > 0 and redis.call('RPOP', c.queue, tail) or {}
    for i = #backwards, 1, -1 do behind[#behind + 1] = backwards[i] end
    return before, behind
end

local function without(ids, named)
    local rest = {}
    for _, id in ipairs(ids) do
        if not named[id] then rest[#rest + 1] = id end
    end
    return rest
end

local function push_front(c, ids)
    local backwards = {}
    for i = #ids, 1, -1 do backwards[#backwards + 1] = ids[i] end
    variadic('LPUSH', c.queue, backwards)
end

local function put_in_order(c, head, tail, n, scores)
    if n == 0 then return end
    local waiting, named, order = {}, {}, {}
    local before, behind = cut_ends(c, head, tail)
    for _, id in ipairs(before) do waiting[id] = true end
    for _, id in ipairs(behind) do waiting[id] = true end
    for _ = 1, n do
        local id, score = take(c), take(c)
        if waiting[id] and not named[id] then
            named[id] = true
            order[#order + 1] = id
            scores[#scores + 1] = score
            scores[#scores + 1] = id
        end
    end
    push_front(c, without(before, named))
    push_front(c, order)
    variadic('RPUSH', c.queue, without(behind, named))
end

register('reorder', function(c)
    local epoch, scores = take(c), {}
    if not leads(c, epoch) then return 0 end
    put_in_order(c, tonumber(take(c)), tonumber(take(c)), tonumber(take(c)), scores)
    while c.at <= #c.args do
        local id, score = take(c), take(c)
        if redis.call('HEXISTS', c.live, id) == 1 then
            scores[#scores + 1] = score
            scores[#scores + 1] = id
        end
    end
    variadic('ZADD', c.scores, scores)
    return 1
end)

-- reclaim.lua: put back the jobs whose lease ran out: their worker died. Those that lost too
-- many workers are quarantined: failed, and never run again. A worker that renewed its leases
-- less than a lease ago is alive and does not know of the job (the answer to its claim was lost
-- with a connection): that counts as no loss.
--
-- ARGV  prefix, module, epoch, error body (JSON), limit
-- Returns how many leases were taken back; 0 also when the epoch is over.

local function put_back(c, id, attempt, member, losses)
    local job = job_key(c, id)
    redis.call('ZREM', c.leases, member)
    redis.call('ZREM', c.wip, member)
    redis.call('ZREM', c.yielding, id)
    redis.call('HSET', job, 'status', 'queued', 'worker_name', '', 'aios_losses', losses,
        'aios_ready_ms', c.now)
    redis.call('HINCRBY', job, 'aios_slices', 1)
    redis.call('LPUSH', c.queue, id)
    note(c, 'reclaim', id, attempt, '', '')
end

local function is_alive(c, worker)
    if not worker or worker == '' then return false end
    local seen_ms, lease_ms = unpack(redis.call('HMGET', worker_key(c, worker), 'aios_seen_ms',
        'aios_lease_ms'))
    return c.now - count(seen_ms) < count(lease_ms)
end

register('reclaim', function(c)
    local epoch, body, limit = take(c), take(c), tonumber(take(c))
    if not leads(c, epoch) then return 0 end
    local max_losses = tonumber(redis.call('HGET', c.policy, 'max_losses') or '3')
    local members = redis.call('ZRANGEBYSCORE', c.leases, '-inf', c.now, 'LIMIT', 0, limit)
    for _, member in ipairs(members) do
        local id, attempt = string.match(member, '^(.*):(%d+)$')
        local status, current, losses, worker = unpack(redis.call('HMGET', job_key(c, id), 'status',
            'aios_attempt', 'aios_losses', 'worker_name'))
        losses = count(losses) + (is_alive(c, worker) and 0 or 1)
        if not status or current ~= attempt then
            redis.call('ZREM', c.leases, member) -- its job was deleted; reconcile answers
            redis.call('ZREM', c.wip, member)
        elseif losses >= max_losses then
            terminate(c, id, 'fail', 'failed', body, iso_of(c.now))
            redis.call('ZADD', c.quarantine, c.now, id)
        else
            put_back(c, id, attempt, member, losses)
        end
    end
    send_replies(c)
    write_journal(c)
    return #members
end)

-- expire.lua: end the jobs whose deadline has passed, waiting, running or held.
--
-- ARGV  prefix, module, epoch, error body (JSON), limit
-- Returns how many were ended; 0 also when the epoch is over.

register('expire', function(c)
    local epoch, body, limit = take(c), take(c), tonumber(take(c))
    if not leads(c, epoch) then return 0 end
    local ids = redis.call('ZRANGEBYSCORE', c.deadlines, '-inf', c.now, 'LIMIT', 0, limit)
    for _, id in ipairs(ids) do
        if redis.call('HEXISTS', c.live, id) == 1 then
            terminate(c, id, 'fail', 'failed', body, iso_of(c.now))
        else
            redis.call('ZREM', c.deadlines, id)
        end
    end
    send_replies(c)
    write_journal(c)
    return #ids
end)

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
-- requeued by a stock tool: it is taken in.
-- Returns how many jobs were put right; 0 also when the epoch is over.

local GRACE_MS = 3000
local FULL_LOOK_MS = 10000
local QUARANTINE_MS = 7 * 86400000 -- how long a quarantined id can be seen
local REGISTRIES = {':finished:', ':failed:', ':canceled:'}

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

-- RQ's status of a job, false when it was deleted: a worker may have written to its record since,
-- but never its data.
local function status_of(c, id)
    local job = job_key(c, id)
    return redis.call('HEXISTS', job, 'data') == 1 and redis.call('HGET', job, 'status')
end

-- End a job that has a place if a stock tool deleted or cancelled it. Returns 1, else 0.
local function withdraw(c, id, body, iso, lent)
    local status = status_of(c, id)
    if status and status ~= 'canceled' then return 0 end
    terminate(c, id, 'cancel', 'canceled', body, iso, lent)
    return 1
end

local function withdraw_placed(c, body, iso)
    local mended = 0
    for _, member in ipairs(redis.call('ZRANGE', c.leases, 0, -1)) do
        local id, attempt = string.match(member, '^(.*):(%d+)$')
        mended = mended + withdraw(c, id, body, iso, attempt)
    end
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
    else
        redis.call('LREM', c.queue, 0, id) -- deleted, or ended: there is nothing to run
    end
end

-- Compare all that is live with all that has a place. Returns how many jobs were put right.
local function look_at_all(c, body, iso)
    redis.call('HSET', c.own .. 'reconciled', c.q, c.now)
    local places, mended, live = all_places(c), 0, {}
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
    return mended
end

register('reconcile', function(c)
    local epoch, body = take(c), take(c)
    if not leads(c, epoch) then return 0 end
    local iso = iso_of(c.now)
    local mended = withdraw_placed(c, body, iso)
    if not agrees(c) then
        mended = mended + look_at_all(c, body, iso)
        drop_expired(c)
    end
    send_replies(c)
    write_journal(c)
    return mended
end)

-- look.lua: read-only views for tools and policies.
--
-- ARGV  prefix, module, then
--       'jobs', limit      rows of running, waiting and held jobs
--       'job', id          its row, or nothing when it has ended
--       'metadata', id...     per job what a policy needs, or 0 when it is gone
--       'queue'            one row of numbers
-- Row of a job: id, state, metadata, core, worker, attempt, slices, suspensions, losses, tokens,
-- queued_ms, ran_ms, age_ms, deadline_ms (from now), has deadline, position (-1: none), score
-- ('': none), nice ('': as submitted).

local VIEW = {'status', 'aios_metadata', 'aios_core', 'worker_name', 'aios_attempt', 'aios_slices',
    'aios_suspensions', 'aios_losses', 'aios_tokens', 'aios_queued_ms', 'aios_ran_ms',
    'aios_submitted_ms', 'aios_ready_ms', 'aios_deadline_ms', 'aios_nice'}

local function view(c, id, position)
    local f = redis.call('HMGET', job_key(c, id), unpack(VIEW))
    if not f[1] then return nil end
    local queued_ms = count(f[10])
    if f[1] == 'queued' and f[13] then queued_ms = queued_ms + c.now - f[13] end
    local submitted = tonumber(f[12]) or c.now
    return {id, state_of(c, id, f[1], f[7]), f[2] or '', f[3] or '', f[4] or '', count(f[5]),
        count(f[6]), count(f[7]), count(f[8]), count(f[9]), queued_ms, count(f[11]),
        c.now - submitted, f[14] and f[14] - c.now or 0, f[14] and 1 or 0, position,
        redis.call('ZSCORE', c.scores, id) or '', f[15] or ''}
end

local function jobs(c, limit)
    local rows = {}
    local function add(id, position)
        if #rows < limit then rows[#rows + 1] = view(c, id, position) end
    end
    for _, member in ipairs(redis.call('ZRANGE', c.leases, 0, limit - 1)) do
        add(string.match(member, '^(.*):%d+$'), -1)
    end
    for i, id in ipairs(redis.call('LRANGE', c.queue, 0, limit - 1)) do add(id, i - 1) end
    for _, id in ipairs(redis.call('ZRANGE', c.held, 0, limit - 1)) do add(id, -1) end
    return rows
end

local function metadata(c, id)
    local f = redis.call('HMGET', job_key(c, id), 'aios_metadata', 'aios_core', 'aios_submitted_ms',
        'aios_ready_ms', 'aios_ran_ms', 'aios_tokens', 'aios_slices', 'aios_deadline_ms', 'aios_nice', 'status')
    if not f[10] then return 0 end
    return {f[1] or '', f[2] or '', tonumber(f[3]) or c.now, tonumber(f[4]) or c.now, count(f[5]),
        count(f[6]), count(f[7]), count(f[8]), f[9] or ''}
end

local function queue(c)
    local oldest = 0
    for _, id in ipairs(redis.call('LRANGE', c.queue, 0, 99)) do
        local ready = redis.call('HGET', job_key(c, id), 'aios_ready_ms')
        if ready then oldest = math.max(oldest, c.now - ready) end
    end
    return {redis.call('LLEN', c.queue), redis.call('ZCARD', c.leases), redis.call('ZCARD', c.held),
        redis.call('ZCARD', c.p .. ':finished:' .. c.q), redis.call('ZCARD', c.p .. ':failed:' .. c.q),
        redis.call('ZCARD', c.quarantine), redis.call('HGET', c.policy, 'name') or 'rr', oldest}
end

register('look', function(c)
    local what, answer = take(c), {}
    if what == 'queue' then return queue(c) end
    if what == 'jobs' then return jobs(c, tonumber(take(c))) end
    if what == 'job' then
        local id = take(c)
        if redis.call('HEXISTS', c.live, id) == 0 then return {} end
        return {view(c, id, redis.call('LPOS', c.queue, id) or -1)}
    end
    while c.at <= #c.args do answer[#answer + 1] = metadata(c, take(c)) end
    return answer
end, {'no-writes'})

-- register.lua: show a worker to RQ's tools and ours.
--
-- ARGV  prefix, module, worker, now (ISO), pid, hostname, version, slots, cores

register('register', function(c)
    local worker, iso, pid, hostname, version, slots, cores =
        take(c), take(c), take(c), take(c), take(c), take(c), take(c)
    local key = worker_key(c, worker)
    redis.call('DEL', key)
    redis.call('HSET', key, 'birth', iso, 'last_heartbeat', iso, 'queues', c.q, 'pid', pid,
        'hostname', hostname, 'version', version, 'state', 'idle', 'successful_job_count', 0,
        'failed_job_count', 0, 'total_working_time', 0, 'aios_slots', slots, 'aios_cores', cores)
    redis.call('EXPIRE', key, WORKER_TTL_S)
    redis.call('SADD', c.p .. ':workers', key)
    redis.call('SADD', c.p .. ':workers:' .. c.q, key)
    redis.call('SADD', c.p .. ':queues', c.queue)
    for core in string.gmatch(cores, '[^,]+') do redis.call('HSET', c.cores, core, c.now) end
    return {}
end)

-- unregister.lua: take a worker that stops in good order off the books.
--
-- ARGV  prefix, module, worker, now (ISO)

register('unregister', function(c)
    local worker, iso = take(c), take(c)
    local key = worker_key(c, worker)
    redis.call('SREM', c.p .. ':workers', key)
    redis.call('SREM', c.p .. ':workers:' .. c.q, key)
    redis.call('DEL', key .. ':executions')
    if redis.call('EXISTS', key) == 1 then
        redis.call('HSET', key, 'death', iso, 'state', 'idle')
        redis.call('EXPIRE', key, 60)
    end
    return {}
end)

-- spill.lua: drop from Redis the snapshots that were stored in Postgres, unless they have changed.
--
-- ARGV  prefix, module, epoch, then per job: id, sha1 (hex) of what was stored
-- The size stays behind as 0: the job still has a snapshot, which its worker fetches from there.
-- A job that is listed and has no snapshot (a stock tool deleted it) leaves the books.
-- Returns per job 1 dropped, 0 kept; 0 for all when the epoch is over.

local function spill(c, id, sha1)
    local data = redis.call('GET', snapshot_key(c, id))
    if data and redis.sha1hex(data) ~= sha1 then return 0 end
    redis.call('ZREM', c.snapshots, id)
    redis.call('DECRBY', c.snapshot_total, count(redis.call('HGET', c.snapshot_bytes, id)))
    if not data then
        redis.call('HDEL', c.snapshot_bytes, id)
        return 0
    end
    redis.call('UNLINK', snapshot_key(c, id))
    redis.call('HSET', c.snapshot_bytes, id, 0)
    return 1
end

register('spill', function(c)
    local epoch, answer = take(c), {}
    local leading = leads(c, epoch)
    while c.at <= #c.args do
        local id, sha1 = take(c), take(c)
        answer[#answer + 1] = leading and spill(c, id, sha1) or 0
    end
    return answer
end)
