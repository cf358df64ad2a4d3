-- finish.lua: end jobs: result, RQ's records, statistics and the reply, and claim the next ones.
--
-- ARGV  prefix, module, a ClaimRow, result_ttl_s, failure_ttl_s, external (1: a stock RQ worker
--       keeps RQ's records itself), n, n EndingRows
--
-- Returns {accepted (0 | 1) per job, leases as claim.lua}. A job whose lease is gone is left
-- alone: another worker answers it.

-- RQ's result, and what its tools see of the job. A job that failed expires by itself; for those
-- that finished, `ended.lua` is cheaper.
local function record_in_rq(c, job, worker, iso, failure_ttl_s)
    local key, results, ok = job_key(c, job.id), results_key(c, job.id), job.status == 'finished'
    call('HSET', key, 'status', job.status, 'ended_at', iso, 'aios_reply', job.reply)
    call('XADD', results, '*', 'type', ok and '1' or '2', 'worker_name', worker,
        ok and 'return_value' or 'exc_string', job.result)
    if ok then return end
    local until_ms = text(c, c.now + 1000 * failure_ttl_s)
    call('PEXPIREAT', key, until_ms)
    call('PEXPIREAT', results, until_ms)
end

local function forget(c, done, own)
    local ids, members = {}, {}
    for i, job in ipairs(done) do ids[i], members[i] = job.id, job.member end
    variadic('ZREM', c.leases, members)
    variadic('ZREM', c.deadlines, ids)
    variadic('HDEL', c.live, ids)
    for _, key in ipairs({c.scores, own.suspending}) do
        if call('EXISTS', key) == 1 then variadic('ZREM', key, ids) end
    end
    if call('EXISTS', c.control) == 1 then variadic('HDEL', c.control, ids) end
    if call('EXISTS', c.snapshot_bytes) == 1 then drop_snapshots(c, ids) end
end

-- The reply of what has finished holds all that was streamed; of a failure its text stays a while.
local function drop_texts(c, done)
    local keys = {}
    for _, job in ipairs(done) do
        if job.status == 'finished' then
            keys[#keys + 1] = text_key(c, 'answer', job.id)
            keys[#keys + 1] = text_key(c, 'reasoning', job.id)
        end
    end
    for first = 1, #keys, CHUNK do
        call('UNLINK', unpack(keys, first, math.min(first + CHUNK - 1, #keys)))
    end
end

local function count_work(c, worker, done)
    local good, ms = 0, 0
    for _, job in ipairs(done) do
        if job.status == 'finished' then good = good + 1 end
        ms = ms + job.ran_ms
    end
    local key = worker_key(c, worker)
    if call('EXISTS', key) == 0 then return end
    if good > 0 then call('HINCRBY', key, 'successful_job_count', good) end
    if #done > good then call('HINCRBY', key, 'failed_job_count', #done - good) end
    call('HINCRBYFLOAT', key, 'total_working_time', ms / 1000)
end

-- Charge what the job used; returns its total over all attempts. Where nobody counts use, the
-- first attempt's own is the total, and costs no command.
local function charge_use(c, job)
    if job.attempt == '1' and not quota.metered(c) then return job.tokens .. ',' .. job.ran_ms end
    local total, metadata, known, _, bill, at = quota.charge(c, job)
    job.at = at
    if known then quota.moved(c, metadata, 'r', nil, job.id) end
    quota.ended(c, metadata, job.status == 'finished', bill)
    return total
end

-- Why a job failed, for the journal: the code of the error that its reply carries.
local function reason(job)
    local readable, reply = pcall(cjson.decode, job.reply)
    local body = readable and type(reply) == 'table' and reply.error
    return type(body) == 'table' and tostring(body.code) or 'failed'
end

-- What a call adds to RQ's registries of a queue, and takes off them.
local function books_of(books, at)
    local found = books[at.name]
    if not found then
        found = {at = at, finished = {}, failed = {}, members = {}}
        books[at.name] = found
    end
    return found
end

-- End one job, and enter it into RQ's registries; without a record it may be in those of any queue.
local function end_one(c, job, worker, iso, ttl_s, books, failed)
    local used, ok = charge_use(c, job), job.status == 'finished'
    for _, at in ipairs(job.at or {home(c)}) do
        local book = books_of(books, at)
        book.members[#book.members + 1] = job.member
    end
    if not ttl_s then
        call('HSET', job_key(c, job.id), 'aios_reply', job.reply)
    else
        record_in_rq(c, job, worker, iso, ttl_s.failed)
        if not ok then failed[#failed + 1] = job.id end
        local entries = books_of(books, job.at and job.at[1] or home(c))[job.status]
        entries[#entries + 1] = ttl_s.over[job.status]
        entries[#entries + 1] = job.id
    end
    if job.quarantine == '1' then call('ZADD', c.quarantine, c.now, job.id) end
    if ok then
        note(c, 'finish', job.id, job.attempt, worker, used)
    else
        note(c, 'fail', job.id, job.attempt, worker, used .. ',' .. reason(job))
    end
end

register('finish', function(c)
    local claim = read.claim(c)
    local worker, iso = claim.worker, claim.iso
    local ttl_s, now_s = {finished = tonumber(take(c)), failed = tonumber(take(c))}, math.floor(c.now / 1000)
    ttl_s.over = {finished = text(c, now_s + ttl_s.finished), failed = text(c, now_s + ttl_s.failed)}
    if take(c) == '1' then ttl_s = nil end
    local jobs, ids, leases = read_leased(c, read.ending)
    local clients = read_many('HMGET', c.live, ids)
    local accepted, done, books, seen, failed = {}, {}, {}, {}, {}
    for i, job in ipairs(jobs) do
        accepted[i] = leases[i] and not seen[job.id] and 1 or 0
        if accepted[i] == 1 then
            seen[job.id] = true
            done[#done + 1] = job
            end_one(c, job, worker, iso, ttl_s, books, failed)
            reply_to(c, clients[i], job.reply)
        end
    end
    if #done > 0 then
        for _, book in pairs(books) do
            variadic('ZREM', book.at.wip, book.members)
            variadic('ZADD', book.at.finished, book.finished)
            variadic('ZADD', book.at.failed, book.failed)
            if ttl_s then note_ended(book.at, iso, book.finished, now_s + ttl_s.finished) end
        end
        forget(c, done, routes.own(c, claim.cores))
        if c.q == 'llm' then drop_texts(c, done) end
        for _, id in ipairs(failed) do failures.note(c, id, ttl_s.failed) end -- that they are live no more
        count_work(c, worker, done)
        for _, book in pairs(books) do sweep_ended(c, book.at, SWEPT_BY_FINISH) end
    end
    return {accepted, lend(c, claim)}
end)
