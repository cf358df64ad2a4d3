-- finish.lua: end jobs: result, RQ's records, statistics and the reply, and claim the next ones.
--
-- ARGV  prefix, module, worker, now (ISO), want, lease_ms, cores, result_ttl_s, failure_ttl_s,
--       external (1: a stock RQ worker keeps RQ's records itself), n, then per job:
--       id, attempt, status (finished | failed), reply, result (as RQ stores it), ran_ms,
--       tokens, prompt tokens (all three since the claim), quarantine (0 | 1)
--
-- Returns {accepted (0 | 1) per job, leases as claim.lua}. A job whose lease is gone is left
-- alone: another worker answers it.

local function record_in_rq(c, job, worker, iso, ttl_s)
    local key, results, ok = job_key(c, job.id), results_key(c, job.id), job.status == 'finished'
    redis.call('HSET', key, 'status', job.status, 'ended_at', iso, 'aios_reply', job.reply)
    redis.call('XADD', results, '*', 'type', ok and '1' or '2', 'worker_name', worker,
        ok and 'return_value' or 'exc_string', job.result, 'execution_id', job.attempt)
    local until_ms = text(c, c.now + 1000 * ttl_s)
    redis.call('PEXPIREAT', key, until_ms)
    redis.call('PEXPIREAT', results, until_ms)
end

local function forget(c, done)
    local ids, members = {}, {}
    for i, job in ipairs(done) do ids[i], members[i] = job.id, job.member end
    variadic('ZREM', c.leases, members)
    variadic('ZREM', c.wip, members)
    variadic('ZREM', c.deadlines, ids)
    variadic('HDEL', c.live, ids)
    for _, key in ipairs({c.scores, c.yielding}) do
        if redis.call('EXISTS', key) == 1 then variadic('ZREM', key, ids) end
    end
    if redis.call('EXISTS', c.control) == 1 then variadic('HDEL', c.control, ids) end
    if redis.call('EXISTS', c.snapshot_bytes) == 1 then drop_snapshots(c, ids) end
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
    local args, at = c.args, c.at
    for i = 1, n do
        local id, attempt = args[at], args[at + 1]
        local member = id .. ':' .. attempt
        jobs[i] = {id = id, attempt = attempt, member = member, status = args[at + 2],
            reply = args[at + 3], result = args[at + 4], ran_ms = tonumber(args[at + 5]),
            tokens = tonumber(args[at + 6]), prompt = tonumber(args[at + 7]),
            quarantine = args[at + 8]}
        members[i], ids[i] = member, id
        at = at + 9
    end
    c.at = at
    return jobs, held_leases(c, members), read_many('HMGET', c.live, ids)
end

-- Charge what the job used; returns its total over all attempts. Where nobody counts use, the
-- first attempt's own is the total, and costs no command.
local function settle_use(c, job)
    if job.attempt == '1' and not quota.metered(c) then return text(c, job.tokens) .. ',' .. text(c, job.ran_ms) end
    local total, facts, known = quota.charge(c, job.id, job.attempt, job.ran_ms, job.tokens, job.prompt)
    if known then quota.moved(c, facts, 'r', nil, job.id) end
    quota.ended(c, facts, job.status == 'finished')
    return total
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
    local accepted, done, registry, seen = {}, {}, {finished = {}, failed = {}}, {}
    for i, job in ipairs(jobs) do
        accepted[i] = leases[i] and not seen[job.id] and 1 or 0
        if accepted[i] == 1 then
            seen[job.id] = true
            done[#done + 1] = job
            local used = settle_use(c, job)
            if external then
                redis.call('HSET', job_key(c, job.id), 'aios_reply', job.reply)
            else
                record_in_rq(c, job, worker, iso, ttl_s[job.status])
                local entries = registry[job.status]
                entries[#entries + 1] = text(c, math.floor(c.now / 1000) + ttl_s[job.status])
                entries[#entries + 1] = job.id
            end
            if job.quarantine == '1' then redis.call('ZADD', c.quarantine, c.now, job.id) end
            reply_to(c, clients[i], job.reply)
            note(c, job.status == 'finished' and 'finish' or 'fail', job.id, job.attempt, worker,
                used .. reason(job))
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
