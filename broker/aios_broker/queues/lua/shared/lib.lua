-- lib.lua: what the steps share. Each step begins with `local c = open(args)`: the context of one
-- call. All keys hang on the prefix (ARGV 1) and share its hash tag, so they lie in the slot of
-- KEYS[1]; queues/keys.py names the same keys (tests/integration/test_queue_keys.py compares).

local LIB = 'aios9_'
local WIP_SCORE = '4102444800' -- 2100: RQ's own clean-up must never take our jobs for abandoned
local CHUNK = 1000           -- arguments of one variadic command; Lua unpacks at most about 8,000
local LOOKAHEAD = 64         -- jobs that are not admitted here that a claim looks past ...
local FAR_LOOKAHEAD = 4096   -- ... and where all of them are for other cores
local WORKER_TTL_S = 480     -- RQ's own worker record time to live
local REPLY_TTL_MS = 600000  -- of a reply list whose client is gone
local TEXT_TTL_MS = 3600000  -- of streamed text, since its last piece: as long as a failure is kept
local SUSPENDING_MS = 10000    -- a job told to suspend has done so by then, or its worker is dead
local DEFAULT_DEADLINE_MS = 600000 -- of jobs that stock RQ tools enqueued
local FEW = 3                -- ids that are looked for one by one in the run queue
local LONG_QUEUE = 4000      -- a longer one is not gone through in one step: see unlist.lua
local SEVERAL = '*'          -- see turns.lua
local TAKEN = ''             -- in the run queue, within one step: what stood here is taken off

local ROUTED = {llm = true} -- modules whose cores have run queues of their own
local quota = {}     -- what quota.lua gives to the other steps
local money = {}     -- what money.lua does,
local rates = {}     -- what rates.lua does,
local routes = {}    -- what routes.lua does,
local failures = {}  -- what failures.lua does,
local admission = {} -- and admission.lua
local call       -- redis.call, which is not there yet while the library is loaded

local function now_ms()
    local time = call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The names of a queue's keys: built at its first call, and kept. A queue is a module's own, `llm`, or
-- that of one of its cores, `llm.small`: a job stands in the one that its record's `origin` names. What is
-- RQ's is the queue's; what is the kernel's is the module's, but for what belongs to one list.
local function names_of(p, name)
    local own, q = p .. ':aios:', string.match(name, '^[^.]+')
    return {
        own = own,
        name = name,
        core = string.sub(name, #q + 2),       -- '': it is the module's own
        queue = p .. ':queue:' .. name,        -- list: all that waits
        wip = p .. ':wip:' .. name,            -- zset: RQ's started registry
        deferred = p .. ':deferred:' .. name,  -- zset: RQ's registry, shows what is held or parked
        finished = p .. ':finished:' .. name,  -- zset: RQ's, and the next two
        failed = p .. ':failed:' .. name,
        canceled = p .. ':canceled:' .. name,
        suspending = own .. 'suspending:' .. name, -- zset: id -> ms when it was told to suspend
        memories = own .. 'memories:' .. name, -- hash: memory of cores -> contexts that fit, ms when told
        ended = own .. 'ended:' .. name,       -- list: batches of finished jobs, oldest first
        far = own .. 'far:' .. name,           -- see admission.lua
        queues = own .. 'queues:' .. q,        -- set: names of the queues of cores
        live = own .. 'live:' .. q,            -- hash: id -> clients that wait, space between
        leases = own .. 'leases:' .. q,        -- zset: id:attempt -> expiry ms
        deadlines = own .. 'deadlines:' .. q,  -- zset: id -> ms
        scores = own .. 'scores:' .. q,        -- zset: id -> the policy's score
        held = own .. 'held:' .. q,            -- zset: id -> ms since when
        parked = own .. 'parked:' .. q,        -- zset: id -> ms since when
        control = own .. 'control:' .. q,      -- hash: id -> what an operator wants of it
        suspects = own .. 'suspects:' .. q,    -- zset: id -> ms when it was first out of place
        failures = own .. 'failures:' .. q,    -- list, and the next, a string: see failures.lua
        failed_bytes = own .. 'failed_bytes:' .. q,
        quarantine = own .. 'quarantine:' .. q, -- zset: id -> ms; poison and foreign jobs
        resources = own .. 'resources:' .. q,  -- hash, and the next four: see admission.lua
        tool_limits = own .. 'tool_limits:' .. q,
        holders = own .. 'holders:' .. q,
        owed = own .. 'owed:' .. q,
        barred = own .. 'barred:' .. q,
        policy = own .. 'policy:' .. q,        -- hash: PolicyRow
        watch = own .. 'watch:' .. q,          -- hash, and the next three: see watch.lua
        touched = own .. 'touched:' .. q,
        ranked = own .. 'ranked:' .. q,
        marks = own .. 'marks:' .. q,
        cards = own .. 'core_cards',           -- hash, and the next five: see routes.lua
        removed = own .. 'core_removed',
        served = own .. 'core_served',
        serving = own .. 'core_workers',
        looked = own .. 'core_looked',
        last_core = own .. 'last_core:',
        terms = own .. 'terms',                -- hash: core -> limits and currency, see rates.lua
        stopped = own .. 'stopped',            -- hash: subject -> who suspended it, see stop.lua
        tokens = own .. 'tokens',              -- hash: digest -> whose, JSON
        scheduler = own .. 'scheduler',        -- hash: holder, epoch, until
        snapshots = own .. 'snapshots',        -- zset: id -> ms when written
        snapshot_bytes = own .. 'snapshot_bytes', -- hash: id -> size
        snapshot_total = own .. 'snapshot_total', -- string: sum of the sizes
    }
end

local queues = {} -- by prefix and name, a line between: what each context of a queue falls back on

local function names(p, name)
    local queue = p .. '\n' .. name
    local known = queues[queue]
    if not known then
        known = {__index = names_of(p, name)}
        queues[queue] = known
    end
    return known
end

-- The second argument of each step: a module, or, where it is about one list, the queue of a core.
local function open(args)
    call = redis.call
    local p, known = args[1], names(args[1], args[2])
    local q = known.__index.core == '' and args[2] or string.match(args[2], '^[^.]+')
    return setmetatable({p = p, q = q, routed = ROUTED[q], now = now_ms(), at = 3, args = args, journal = {}},
        known)
end

-- The queue, its names that is, that a job's `origin` says; one that names none of the module's own is
-- a stranger's, in the module's own.
local function home(c, origin)
    if not c.routed then return getmetatable(c).__index end
    if not origin or string.sub(origin, 1, #c.q + 1) ~= c.q .. '.' then origin = c.q end
    return names(c.p, origin).__index
end

-- The field that says it, last in a list of fields: read only where there are several.
local function origin_of(c)
    if c.routed then return 'origin' end
end

-- All queues of the module: one, unless it has cores.
local function all_queues(c)
    if not c.lists then
        c.lists = {home(c)}
        if c.routed then
            local found = call('SMEMBERS', c.queues)
            table.sort(found)
            for i, name in ipairs(found) do c.lists[i + 1] = names(c.p, name).__index end
        end
    end
    return c.lists
end

-- How many wait.
local function waiting_in(c)
    local sum = 0
    for _, at in ipairs(all_queues(c)) do sum = sum + call('LLEN', at.queue) end
    return sum
end

local function job_key(c, id) return c.p .. ':job:' .. id end
local function results_key(c, id) return c.p .. ':results:' .. id end
local function worker_key(c, name) return c.p .. ':worker:' .. name end
local function ghosts_key(c) return c.own .. 'ghosts:' .. c.q end
local function snapshot_key(c, id) return c.own .. 'snapshot:' .. id end
local function text_key(c, part, id) return c.own .. part .. ':' .. id end -- see emit.lua

-- The next argument of the call.
local function take(c)
    local value = c.args[c.at]
    c.at = c.at + 1
    return value
end

-- `command key item...`, in chunks; items is a flat list. Returns the sum of the answers: how many
-- were new, for ZADD and HSET.
local function variadic(command, key, items)
    local sum = 0
    for first = 1, #items, CHUNK do
        sum = sum + call(command, key, unpack(items, first, math.min(first + CHUNK - 1, #items)))
    end
    return sum
end

-- HMGET or ZMSCORE over a list of members of any length.
local function read_many(command, key, members)
    if #members <= CHUNK then
        return #members == 0 and {} or call(command, key, unpack(members))
    end
    local all = {}
    for first = 1, #members, CHUNK do
        local part = call(command, key, unpack(members, first, math.min(first + CHUNK - 1, #members)))
        for i = 1, #part do all[#all + 1] = part[i] end
    end
    return all
end

-- One transition. `detail`: metadata for submit and adopt, what was used over all slices
-- (`quota.used`) for suspend, hold, reclaim and finish; for fail and cancel the same and the error's code. Those of a
-- batch mostly differ in their ids alone: what they have in common is kept once.
local function note(c, event, id, attempt, who, detail)
    local run = c.journal[#c.journal]
    if not run or run.event ~= event or run.attempt ~= attempt or run.who ~= who or run.detail ~= detail then
        run = {event = event, attempt = attempt, who = who, detail = detail}
        c.journal[#c.journal + 1] = run
    end
    run[#run + 1] = id
end

-- The lines of all transitions: event, id, attempt, who and detail, a tab between.
local function journal_lines(c)
    local lines = {}
    for i, run in ipairs(c.journal) do
        local head = run.event .. '\t'
        local tail = '\t' .. run.attempt .. '\t' .. run.who .. '\t' .. run.detail
        lines[i] = head .. table.concat(run, tail .. '\n' .. head) .. tail
    end
    return table.concat(lines, '\n')
end

-- One XADD carries all transitions of the call (t), what it charged (u), and a quota's change (s).
local function write_journal(c)
    local uses = (c.uses or c.load_changed) and quota.write(c)
    if #c.journal == 0 and not uses and not c.settings then return end
    local entry = {'q', c.q}
    local function add(name, text)
        if text then entry[#entry + 1] = name; entry[#entry + 1] = text end
    end
    add('t', #c.journal > 0 and journal_lines(c))
    add('u', uses)
    add('s', c.settings)
    call('XADD', c.own .. 'journal', 'MAXLEN', '~', 200000, '*', unpack(entry))
end

local function count(value) return tonumber(value) or 0 end

-- A number as text: what many jobs of a call have in common is written once.
local function text(c, number)
    local texts = c.texts
    if not texts then texts = {}; c.texts = texts end
    local written = texts[number]
    if not written then
        written = string.format('%.0f', number)
        texts[number] = written
    end
    return written
end

local function text_of(number) return string.format('%.0f', number) end

-- Replies of one call, gathered by client.
local function reply_to(c, clients, message)
    if not clients or clients == '' then return end
    c.replies = c.replies or {}
    local box = c.replies[clients] -- nearly always there is one client
    if box then
        box[#box + 1] = message
        return
    end
    for client in string.gmatch(clients, '%S+') do
        box = c.replies[client]
        if not box then box = {}; c.replies[client] = box end
        box[#box + 1] = message
    end
end

local function send_replies(c)
    for client, box in pairs(c.replies or {}) do
        local key = c.own .. 'reply:' .. client
        variadic('RPUSH', key, box)
        call('PEXPIRE', key, REPLY_TTL_MS)
    end
end

-- Take off the run queue what stands at these places. To name it by its place costs next to nothing,
-- to look for an id costs the length of the queue: 1 to 2 ms in one of 100,000.
local function drop_places(queue, places)
    for _, place in ipairs(places) do call('LSET', queue, place, TAKEN) end
    if #places > 0 then call('LREM', queue, #places, TAKEN) end
end

-- Take ended jobs off a run queue, wherever they stand: many of them in one pass, which ends where the
-- last one stood. (A copy that a stock tool pushed behind it is dropped by a claim.)
local function clear_list(c, queue, ids)
    if #ids <= FEW then
        for _, id in ipairs(ids) do call('LREM', queue, 0, id) end
        return
    end
    if call('LLEN', queue) > LONG_QUEUE then -- a claim drops them, or the scheduler does
        variadic('SADD', ghosts_key(c), ids)
        return
    end
    local named, places, sought = {}, {}, #ids
    for _, id in ipairs(ids) do named[id] = true end
    for first = 0, call('LLEN', queue) - 1, CHUNK do
        for i, id in ipairs(call('LRANGE', queue, first, first + CHUNK - 1)) do
            if named[id] then
                places[#places + 1] = first + i - 1
                if named[id] ~= 'seen' then sought = sought - 1 end
                named[id] = 'seen'
            end
        end
        if sought == 0 then break end
    end
    drop_places(queue, places)
end

-- Those of all queues, as `c.off` has them.
local function clear_queues(c)
    local off = c.off
    if not off then return end
    c.off = nil
    for queue, ids in pairs(off) do clear_list(c, queue, ids) end
end

-- Take a job off these queues when the step ends.
local function leave_queues(c, id, queues_of_it)
    c.off = c.off or {}
    for _, at in ipairs(queues_of_it) do
        local ids = c.off[at.queue] or {}
        ids[#ids + 1] = id
        c.off[at.queue] = ids
    end
end

-- It is not told to suspend any more. Whose worker told it is not known: each core has a note of its own.
local function forget_told(c, id)
    for _, at in ipairs(all_queues(c)) do call('ZREM', at.suspending, id) end
end

local function drop_snapshots(c, ids)
    local sizes = read_many('HMGET', c.snapshot_bytes, ids)
    for i = 1, #ids do
        if sizes[i] then
            call('UNLINK', snapshot_key(c, ids[i]))
            call('HDEL', c.snapshot_bytes, ids[i])
            call('ZREM', c.snapshots, ids[i])
            call('DECRBY', c.snapshot_total, sizes[i])
        end
    end
end

local function keep_snapshot(c, id, data)
    if data == '' then return end
    local old = count(call('HGET', c.snapshot_bytes, id))
    call('SET', snapshot_key(c, id), data)
    call('HSET', c.snapshot_bytes, id, #data)
    call('ZADD', c.snapshots, c.now, id)
    call('INCRBY', c.snapshot_total, #data - old)
end

-- Which of these (id, attempt) hold their lease: list of scores, false where it is gone.
local function held_leases(c, members)
    return read_many('ZMSCORE', c.leases, members)
end

-- The attempts of all leases, by id: asked for when a job's record, that has its attempt, is gone.
local function attempts_lent(c)
    if not c.attempts then
        c.attempts = {}
        for _, member in ipairs(call('ZRANGE', c.leases, 0, -1)) do
            local id, attempt = string.match(member, '^(.*):(%d+)$')
            c.attempts[id] = attempt
        end
    end
    return c.attempts
end

-- The n rows that follow, see queues/rows.py.
local function read_rows(c, read_one)
    local rows = {}
    for i = 1, take(c) do rows[i] = read_one(c) end
    return rows
end

-- And, of rows that name a lease each: the members, the ids, and which of them last.
local function read_leased(c, read_one)
    local rows, members, ids = read_rows(c, read_one), {}, {}
    for i, row in ipairs(rows) do
        row.member = row.id .. ':' .. row.attempt
        members[i], ids[i] = row.member, row.id
    end
    return rows, ids, held_leases(c, members)
end

local function error_reply(id, body)
    return '{"kind":"reply","id":' .. cjson.encode(id) .. ',"error":' .. body .. '}'
end

-- Has a stock tool cancelled or deleted what is lent? Then no step of a worker writes to its record: its
-- lease stays until the scheduler answers for it (reconcile.lua).
local function is_removed(c, id)
    local status = redis.pcall('HGET', job_key(c, id), 'status') -- an error: a foreign key of another type
    return not status or status == 'canceled' or type(status) == 'table'
end

-- End a job that no worker ends: cancelled, past its deadline, poison, deleted by a stock tool.
-- `status` is RQ's. Whoever waits hears `body`, an encoded ErrorBody. The worker that runs it
-- loses its lease and is told to stop. `lent`: the attempt of its lease, where the caller knows
-- it: the record of a deleted job does not.
local function terminate(c, id, event, status, body, iso, lent)
    local job = job_key(c, id)
    local attempt, worker, was, metadata, tokens, ran_ms, core, pico, currency, origin = unpack(call('HMGET',
        job, 'aios_attempt', 'worker_name', 'status', 'aios_metadata', 'aios_tokens', 'aios_ran_ms',
        'aios_core', 'aios_cost', 'aios_currency', 'origin'))
    local at = was and {home(c, origin)} or all_queues(c) -- without a record it may be anywhere
    attempt = lent or attempt or '0'
    local member = id .. ':' .. attempt
    local ran = call('ZREM', c.leases, member) == 1
    if was then quota.moved(c, metadata or nil, ran and 'r' or 'q', nil, id) end
    quota.ended(c, metadata or nil, false, core and {core = core, currency = currency or ''})
    if ran then
        for _, each in ipairs(at) do call('ZREM', each.wip, member) end
        if worker then
            call('PUBLISH', c.p .. ':pubsub:' .. worker,
                '{"command":"stop-job","job_id":' .. cjson.encode(id) .. '}')
        end
    elseif was == 'queued' or not was then
        leave_queues(c, id, at)
    end
    for _, each in ipairs(at) do call('ZREM', each.deferred, id) end
    for _, key in ipairs({c.held, c.parked, c.deadlines, c.scores, c.suspects}) do call('ZREM', key, id) end
    forget_told(c, id)
    call('HDEL', c.control, id)
    drop_snapshots(c, {id})
    local reply = error_reply(id, body)
    reply_to(c, call('HGET', c.live, id), reply)
    call('HDEL', c.live, id)
    if was then
        local ttl_s = 3600
        call('HSET', job, 'status', status, 'ended_at', iso, 'aios_reply', reply)
        call('EXPIRE', job, ttl_s)
        call('ZADD', at[1][status], math.floor(c.now / 1000) + ttl_s, id)
        failures.note(c, id, ttl_s)
    else
        call('UNLINK', job) -- what its worker still charged to it
    end
    local code = cjson.decode(body).code or ''
    local used = tokens and quota.used(tokens, ran_ms, core, pico, currency)
    note(c, event, id, attempt, '', used and used .. ',' .. code or code)
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

-- When a month begins, UTC.
local function ms_of_month(year, month)
    local y = month <= 2 and year - 1 or year
    local era = math.floor(y / 400)
    local yoe = y - era * 400
    local doy = math.floor((153 * (month > 2 and month - 3 or month + 9) + 2) / 5)
    local doe = yoe * 365 + math.floor(yoe / 4) - math.floor(yoe / 100) + doy
    return (era * 146097 + doe - 719468) * 86400000
end

-- Whether the caller's leadership lasts: nobody has taken over, and its lease has not run out. A
-- step that waited in a Redis that hung is late, and does nothing.
local function leads(c, epoch)
    local current, until_ms = unpack(call('HMGET', c.scheduler, 'epoch', 'until'))
    return current == epoch and count(until_ms) > c.now
end

local function adopt(c, id, iso)
    local job = job_key(c, id)
    local metadata, origin = unpack(call('HMGET', job, 'aios_metadata', 'origin'))
    call('HSET', c.live, id, '')
    call('HDEL', job, 'aios_streamed', 'aios_ahead', 'aios_reply', 'aios_decided', 'aios_tried')
    call('UNLINK', text_key(c, 'answer', id), text_key(c, 'reasoning', id))
    call('PERSIST', job)
    call('ZREM', home(c, origin).finished, id) -- its record is not to be swept with that life
    call('HSET', job, 'aios_submitted_ms', c.now, 'aios_ready_ms', c.now, 'enqueued_at', iso,
        'aios_losses', 0, 'aios_deadline_ms', c.now + DEFAULT_DEADLINE_MS)
    call('ZADD', c.deadlines, c.now + DEFAULT_DEADLINE_MS, id)
    quota.moved(c, metadata or nil, nil, 'q', id)
    if call('HEXISTS', c.policy, 'flow') == 1 then call('HSET', c.policy, 'flow', SEVERAL) end
    note(c, 'adopt', id, '', '', metadata or '')
end

-- What a full Redis refuses: new work, and what can be done without. All else ends jobs, which is
-- what frees memory, or costs a few bytes.
local NEEDS_ROOM = {submit = true, emit = true, context = true}

-- For each id that follows: what is done to a job that has not ended (`act`; `done` unless it says
-- otherwise); one that has is `ended`, or `unknown` where its record is gone.
local function for_each(c, act)
    local answer = {}
    while c.at <= #c.args do
        local id = take(c)
        if call('HEXISTS', c.live, id) == 1 then
            answer[#answer + 1] = act(id) or 'done'
        else
            answer[#answer + 1] = call('EXISTS', job_key(c, id)) == 1 and 'ended' or 'unknown'
        end
    end
    return answer
end

-- A step ends with what it has gathered: what leaves the queue, the replies, the journal. Wake-ups need
-- no command of ours: clients block on the lists that these steps push to.
local function register(step, body, flags)
    local function callback(_, args)
        local c = open(args)
        local answer = body(c)
        clear_queues(c)
        send_replies(c)
        write_journal(c)
        return answer
    end
    redis.register_function{function_name = LIB .. step, callback = callback,
        flags = flags or NEEDS_ROOM[step] and {} or {'allow-oom'}}
end
