-- look.lua: read-only views for tools and policies.
--
-- ARGV  prefix, module ('ends': the queue that it is about), then
--       'jobs', limit      rows of running, waiting, held and parked jobs
--       'job', id          its row, or nothing when it has ended
--       'some', head, id...   rows of those that have not ended; the place of one that waits is told
--                          where it is among the first `head` of its queue: to look through all of a
--                          long one for each costs too much
--       'metadata', id...     per job what a policy needs, or 0 when it is gone
--       'ends', whole, head, running, middle   how many wait and, unless all is in order: the
--                          first `head` ids (all of up to `whole`), their scores, those of the last
--                          `head` ids that have no score or one that belongs among the head's,
--                          their scores; where `running` is 1, the running ids that have none
--                          ('': no score); and the first UNKNOWN of all that have none, with
--                          their metadata; where `middle` is 1, of those between the ends the ids
--                          whose scores belong among the head's, the lowest ones, and their scores
--       'queue'            a QueueRow
-- A job's row is a JobRow.

local VIEW = {'status', 'aios_metadata', 'aios_needs', 'worker_name', 'aios_attempt', 'aios_slices',
    'aios_suspensions', 'aios_losses', 'aios_tokens', 'aios_queued_ms', 'aios_ran_ms',
    'aios_submitted_ms', 'aios_ready_ms', 'aios_deadline_ms', 'aios_nice', 'aios_uncut', 'origin'}

local function view(c, id, position)
    local f = redis.pcall('HMGET', job_key(c, id), unpack(VIEW))
    if f.err or not f[1] then return nil end
    local queued_ms = count(f[10])
    if f[1] == 'queued' and f[13] then queued_ms = queued_ms + c.now - f[13] end
    local submitted = tonumber(f[12]) or c.now
    return pack.job{id = id, state = state_of(c, id, f[1], f[7]), metadata = f[2] or '',
        needs = f[3] or '', worker = f[4] or '', attempt = count(f[5]), slices = count(f[6]),
        suspensions = count(f[7]), losses = count(f[8]), tokens = count(f[9]), queued_ms = queued_ms,
        ran_ms = count(f[11]), age_ms = c.now - submitted, submitted_ms = submitted,
        deadline_ms = f[14] and f[14] - c.now, position = position, score = redis.call('ZSCORE', c.scores, id), nice = f[15],
        uncut = f[16] and string.match(f[16], '^' .. count(f[5]) .. ': (.*)') or false,
        queue = home(c, f[17]).name}
end

local function jobs(c, limit)
    local rows = {}
    local function add(id, position)
        if #rows < limit then rows[#rows + 1] = view(c, id, position) end
    end
    for _, member in ipairs(redis.call('ZRANGE', c.leases, 0, limit - 1)) do
        add(string.match(member, '^(.*):%d+$'), false)
    end
    for _, at in ipairs(all_queues(c)) do
        for i, id in ipairs(redis.call('LRANGE', at.queue, 0, limit - 1)) do add(id, i - 1) end
    end
    for _, place in ipairs({c.held, c.parked}) do
        for _, id in ipairs(redis.call('ZRANGE', place, 0, limit - 1)) do add(id, false) end
    end
    return rows
end

local function some(c, head)
    local places, rows = {}, {}
    for _, at in ipairs(all_queues(c)) do
        for i, id in ipairs(redis.call('LRANGE', at.queue, 0, head - 1)) do places[id] = i - 1 end
    end
    while c.at <= #c.args do
        local id = take(c)
        if redis.call('HEXISTS', c.live, id) == 1 then rows[#rows + 1] = view(c, id, places[id] or false) end
    end
    return rows
end

local function metadata(c, id)
    local f = redis.pcall('HMGET', job_key(c, id), 'aios_metadata', 'aios_needs', 'aios_submitted_ms',
        'aios_ready_ms', 'aios_ran_ms', 'aios_tokens', 'aios_slices', 'aios_deadline_ms', 'aios_nice', 'status',
        origin_of(c))
    if f.err or not f[10] then return 0 end
    return pack.waiting{metadata = f[1] or '', needs = f[2] or '', submitted_ms = tonumber(f[3]) or c.now,
        ready_ms = tonumber(f[4]) or c.now, ran_ms = count(f[5]), tokens = count(f[6]),
        slices = count(f[7]), deadline_ms = count(f[8]), nice = f[9] or '',
        core = home(c, f[11]).core}
end

local function queue(c)
    local oldest = 0
    local function size(key) return redis.call('ZCARD', key) end
    local finished, failed = 0, 0
    for _, at in ipairs(all_queues(c)) do
        for _, id in ipairs(redis.call('LRANGE', at.queue, 0, 99)) do
            local ready = redis.call('HGET', job_key(c, id), 'aios_ready_ms')
            if ready then oldest = math.max(oldest, c.now - ready) end
        end
        finished, failed = finished + size(at.finished), failed + size(at.failed)
    end
    return pack.queue{waiting = waiting_in(c), running = size(c.leases), held = size(c.held),
        parked = size(c.parked), finished = finished, failed = failed, quarantined = size(c.quarantine),
        policy = redis.call('HGET', c.policy, 'name') or 'rr', oldest_ms = oldest}
end

local UNKNOWN = 200 -- jobs whose metadata come with the ends: about 1 ms
local MIDDLE_PLACES = 200000 -- of the queue that are passed to find jobs in its middle: up to 2 ms
local MIDDLE_SEEN = 64 -- scores that are looked at for them, those of running jobs among them

local function scores_of(c, ids)
    local scores = read_many('ZMSCORE', c.scores, ids)
    for i = 1, #ids do scores[i] = scores[i] or '' end
    return scores
end

local function in_order(scores)
    local before = -math.huge
    for _, score in ipairs(scores) do
        score = tonumber(score)
        if not score or score < before then return false end
        before = score
    end
    return true
end

local function running_unscored(c)
    local ids, rest = {}, {}
    for i, member in ipairs(call('ZRANGE', c.leases, 0, CHUNK - 1)) do
        ids[i] = string.match(member, '^(.*):%d+$')
    end
    for i, score in ipairs(scores_of(c, ids)) do
        if score == '' then rest[#rest + 1] = ids[i] end
    end
    return rest
end

-- Of what waits between the ends, the lowest scores below the head's highest, of equal ones the oldest.
-- To take one out of the middle costs its place, so there are the fewer of them the longer the queue is.
local function middle_below(c, highest, length, seen)
    local found = {}
    local rows = call('ZRANGEBYSCORE', c.scores, '-inf', '(' .. string.format('%.17g', highest),
        'WITHSCORES', 'LIMIT', 0, MIDDLE_SEEN)
    for i = 1, #rows, 2 do
        local id = rows[i]
        local status, ready_ms, origin = unpack(not seen[id]
            and call('HMGET', job_key(c, id), 'status', 'aios_ready_ms', 'origin') or {})
        if status == 'queued' and home(c, origin).queue == c.queue then
            found[#found + 1] = {id = id, score = tonumber(rows[i + 1]), text = rows[i + 1],
                since = count(ready_ms)}
        end
    end
    local function older(a, b)
        if a.score ~= b.score then return a.score < b.score end
        return a.since < b.since
    end
    table.sort(found, older)
    local between, ids, scores = {}, {}, {}
    for i = 1, math.min(#found, math.max(1, math.floor(MIDDLE_PLACES / length))) do
        found[i].since = call('LPOS', c.queue, found[i].id)
        if found[i].since then between[#between + 1] = found[i] end
    end
    table.sort(between, older)
    for i, each in ipairs(between) do ids[i], scores[i] = each.id, each.text end
    return ids, scores
end

local function ends(c, whole, head, running, middle)
    local length = call('LLEN', c.queue)
    if length <= whole then head = whole end
    local first = call('LRANGE', c.queue, 0, head - 1)
    local scores, low, low_scores, between, between_scores = scores_of(c, first), {}, {}, {}, {}
    local highest = -math.huge
    for _, score in ipairs(scores) do highest = math.max(highest, tonumber(score) or highest) end
    if length > head then
        local last = call('LRANGE', c.queue, math.max(head, length - head), -1)
        for i, score in ipairs(scores_of(c, last)) do
            if score == '' or tonumber(score) < highest then
                low[#low + 1], low_scores[#low_scores + 1] = last[i], score
            end
        end
        if middle and highest > -math.huge then
            local seen = {}
            for _, ids in ipairs({first, last}) do
                for _, id in ipairs(ids) do seen[id] = true end
            end
            between, between_scores = middle_below(c, highest, length, seen)
        end
    end
    local rest = running and running_unscored(c) or {}
    if #low == 0 and #between == 0 and #rest == 0 and in_order(scores) then return {length} end
    local unknown, rows = {}, {}
    local function learn(ids, known)
        for i, id in ipairs(ids) do
            if (not known or known[i] == '') and #unknown < UNKNOWN then
                unknown[#unknown + 1], rows[#rows + 1] = id, metadata(c, id)
            end
        end
    end
    learn(first, scores)
    learn(low, low_scores)
    learn(rest)
    return {length, first, scores, low, low_scores, rest, unknown, rows, between, between_scores}
end

register('look', function(c)
    local what, answer = take(c), {}
    if what == 'queue' then return queue(c) end
    if what == 'ends' then
        return ends(c, tonumber(take(c)), tonumber(take(c)), take(c) == '1', take(c) == '1')
    end
    if what == 'jobs' then return jobs(c, tonumber(take(c))) end
    if what == 'some' then return some(c, tonumber(take(c))) end
    if what == 'job' then
        local id = take(c)
        if redis.call('HEXISTS', c.live, id) == 0 then return {} end
        local at = home(c, redis.call('HGET', job_key(c, id), 'origin'))
        return {view(c, id, redis.call('LPOS', at.queue, id))}
    end
    while c.at <= #c.args do answer[#answer + 1] = metadata(c, take(c)) end
    return answer
end, {'no-writes'})
