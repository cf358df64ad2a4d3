-- quota.lua: what agents and tenants use, and what they may use. Most of it are functions that the
-- other steps call; the steps of its own are at the end.
--
-- A subject is `tenant:T`, `agent:T A` or `program:T A P`: P is a tree, the name of a program up to its
-- first slash, and stands for all programs of that tree. Keys, per module:
--   aios:use     hash: subject -> tokens, prompt tokens, ran_ms, finished, failed, cached prompt tokens
--                (space between), and for each currency `USD=` and the cost in nano-units
--   aios:used    zset: subject -> ms when its counters are dropped, unless it uses more
--   aios:counted string: there while the load is counted though there are no quotas: the queue is long
--   aios:quota   hash: agent, tenant, `agent:*` or `tenant:*` -> the LIMITS, `-` where there is none
--   aios:load    hash: how many wait (`q`, `q <subject>`: suspended, held and parked ones, too) and
--                run (`r`, `r <subject>`), and a note of the sweep
--   aios:recount  hash: the load as far as it has been counted anew, and the cursor; and
--   aios:recounted  set: the ids that are in it: both only while a count in parts is under way
--   aios:bucket  hash: `tokens <subject>`, `ms <subject>` -> level and when it was reached, ms
-- Use is counted in metered modules: llm, and all that have quotas or a policy that watches it. The load and the buckets are
-- there while there are quotas. All changes of one call are written at its end, by `write`.

do -- its names are its own: Lua has room for 200 in all

local METERED = 'llm'
local LIMITS = {'max_queued', 'max_running', 'tokens_per_minute', 'slot_seconds_per_minute',
    'budget_per_day', 'budget_per_month', 'min_nice', 'max_contexts', 'max_context_bytes', 'max_unread'}
-- What holds of an agent where nothing is set.
local DEFAULTS = {min_nice = 0, max_contexts = 1000, max_context_bytes = 256 * 1024 * 1024, max_unread = 10000}
-- And so much of a module's queue (max_waiting) an agent or a tenant may fill: nobody keeps all others out.
-- That is counted where there are quotas, and else only while a part of the queue is full.
local SHARES = {agent = 0.5, tenant = 0.75}
local SHARED_FROM = 1000     -- a queue that may hold fewer is nobody's to share
local COUNTED_FROM = 0.25    -- of max_waiting
local COUNTED = 6 -- tokens, prompt tokens, ran_ms, finished, failed, cached prompt tokens
local USE_TTL_MS = {program = 3600000, agent = 7 * 86400000, tenant = 7 * 86400000}
local SWEPT = 2000           -- counters that are dropped in one sweep, each second: about 1 ms
local RECOUNT_MS = 60000     -- the load is counted anew after this long ...
local RECOUNT_SHARE = 5      -- ... or where it disagrees: 1 ms of waiting for so many jobs to count
local RECOUNTED = 1000       -- jobs that are counted anew in one step: about 5 ms

local function quota_key(c, name) return c.own .. name .. ':' .. c.q end

local function has_quotas(c)
    if c.quotas == nil then admission.read_rules(c) end
    return c.quotas
end

quota.has_quotas = has_quotas

function quota.metered(c) return c.q == METERED or has_quotas(c) or c.scope end

-- Tell the policy that watches it that an owner's counters, or what runs of it, have moved.
local function touch(c, who)
    if c.quotas == nil then admission.read_rules(c) end
    local subject = c.scope and who[c.scope]
    if not subject or c.told == subject then return end
    c.told = subject
    redis.call('HINCRBY', c.touched, subject, 1)
end

-- Whose a job is, from its metadata as submit wrote them: names hold no quotes, no spaces. A job of a
-- stock producer has none.
function quota.owner(c, metadata)
    c.owners = c.owners or {}
    local who = c.owners[metadata or '']
    if who then return who end
    local function name(field, default)
        return metadata and string.match(metadata, '"' .. field .. '":"([^"\\%s]+)"') or default
    end
    local tenant, agent, program = name('tenant', 'default'), name('agent', '?'), name('program', 'main')
    local tree = string.match(program, '^([^/]+)/') or program
    who = {tenant = 'tenant:' .. tenant, agent = 'agent:' .. tenant .. ' ' .. agent,
        program = 'program:' .. tenant .. ' ' .. agent .. ' ' .. tree,
        line = tenant .. '\t' .. agent .. '\t' .. program,
        width = tonumber(metadata and string.match(metadata, '"width":(%d+)')) or 1}
    who.limited = {who.agent, who.tenant}
    c.owners[metadata or ''] = who
    return who
end

-- A limit as it is kept: a number, or, of a budget, its nano-units and their currency.
local function read_limit(name, value)
    if not string.find(name, '^budget') then return tonumber(value) end
    local nano, currency = string.match(value, '^(%d+)(%u+)$')
    return nano and {nano = tonumber(nano), currency = currency}
end

-- The limits of an agent or tenant: its own, and where it has none those of `*`.
function quota.limits_of(c, subject)
    c.limits = c.limits or {}
    local found = c.limits[subject]
    if found then return found end
    found = {}
    local scope = string.match(subject, '^%a+')
    local rows = redis.call('HMGET', quota_key(c, 'quota'), subject, scope .. ':*')
    for _, row in ipairs({rows[1] or '', rows[2] or ''}) do
        local i = 0
        for value in string.gmatch(row, '%S+') do
            i = i + 1
            local name = LIMITS[i]
            if name then found[name] = found[name] or read_limit(name, value) end
        end
    end
    c.limits[subject] = found
    return found
end

-- How many wait or run, as this call leaves it.
local function load_of(c, field)
    c.load = c.load or {}
    if not c.load[field] then c.load[field] = count(redis.call('HGET', quota_key(c, 'load'), field)) end
    return c.load[field]
end

local function add_load(c, field, by)
    c.load_changed = c.load_changed or {}
    local n = load_of(c, field)
    c.load[field] = n + by
    c.load_changed[field] = true
end

-- While a count in parts is under way: what has been counted there moves there, too. What has not
-- will be counted where it is then; what is new has no other time to be counted.
local function move_recounted(c, changes, from, to, id)
    local key = quota_key(c, 'recounted')
    if not from then
        redis.call('SADD', key, id)
    elseif redis.call(to and 'SISMEMBER' or 'SREM', key, id) == 0 then
        return
    end
    for _, change in ipairs(changes) do
        redis.call('HINCRBY', quota_key(c, 'recount'), change[1], change[2])
    end
end

-- A job goes from one place to another: q (it waits), r (it runs), nil (it is not, or has ended).
-- One whose record is gone is left out: its agent is not known any more. Then the totals disagree
-- with the queue, and the next sweep counts anew.
function quota.moved(c, metadata, from, to, id)
    if from == 'r' or to == 'r' then touch(c, quota.owner(c, metadata)) end
    if not has_quotas(c) then return end
    if c.recounts == nil then c.recounts = redis.call('EXISTS', quota_key(c, 'recount')) == 1 end
    local who, changes = quota.owner(c, metadata), {}
    for _, place in ipairs({{from, -1}, {to, 1}}) do
        local name, by = place[1], place[2]
        if name then
            changes[#changes + 1] = {name, by}
            for _, subject in ipairs(who.limited) do changes[#changes + 1] = {name .. ' ' .. subject, by} end
        end
    end
    for _, change in ipairs(changes) do add_load(c, change[1], change[2]) end
    if c.recounts then move_recounted(c, changes, from, to, id) end
end

-- What is left of a subject's minute: it fills up in a minute, and use may take it below zero.
local function level(c, kind, subject, limit)
    local field = kind .. ' ' .. subject
    c.levels = c.levels or {}
    if not c.levels[field] then
        local left, at = string.match(redis.call('HGET', quota_key(c, 'bucket'), field) or '', '(%S+) (%S+)')
        c.levels[field] = left and math.min(limit, left + (c.now - at) * limit / 60000) or limit
    end
    return c.levels[field]
end

local function drain(c, kind, subject, limit, used)
    if not limit or used == 0 then return end
    local left = level(c, kind, subject, limit) - used
    c.levels[kind .. ' ' .. subject] = left
    c.drained = c.drained or {}
    c.drained[kind .. ' ' .. subject] = true
end

-- Count what was used, for all subjects of a job: the COUNTED, and what it cost on a core.
local function meter(c, who, bill, counts, nano)
    local all = nano
    for i = 1, COUNTED do all = all + (counts[i] or 0) end
    if all == 0 then return end
    c.uses = c.uses or {}
    local line = who.line .. '\t' .. bill.core .. '\t' .. bill.currency
    local sum = c.uses[line] or {who = who, currency = bill.currency, nano = 0, 0, 0, 0, 0, 0, 0}
    for i = 1, COUNTED do sum[i] = sum[i] + (counts[i] or 0) end
    sum.nano = sum.nano + nano
    c.uses[line] = sum
    touch(c, who)
    if nano > 0 then money.spend(c, who, bill.currency, nano) end
    if not has_quotas(c) then return end
    for _, subject in ipairs(who.limited) do
        local limits = quota.limits_of(c, subject)
        drain(c, 'tokens', subject, limits.tokens_per_minute, (counts[1] or 0) + (counts[2] or 0))
        local slot_s = limits.slot_seconds_per_minute
        drain(c, 'ms', subject, slot_s and slot_s * 1000, counts[3] or 0)
    end
end

local CHARGED = {'aios_metadata', 'aios_tokens', 'aios_ran_ms', 'aios_prompt_tokens',
    'aios_charged_attempt', 'aios_base_tokens', 'aios_base_ran_ms', 'status', 'aios_needs', 'origin'}

-- What a job used in all, for the journal; of one that no core worked on, the first two alone.
function quota.used(tokens, ran_ms, core, pico, currency)
    local used = text_of(count(tokens)) .. ',' .. text_of(count(ran_ms))
    if not core or core == '' then return used end
    return table.concat({used, core, text_of(money.nano_of(count(pico))), currency or ''}, ',')
end

-- Charge a job with what this attempt has used since its claim (`use`: a row that says so), all in all: sent again, it changes
-- nothing. What earlier attempts used is the base, set by the first charge of an attempt. The
-- prompt is charged once, however often it is read again. The caller has checked the lease.
-- Returns what the job used in all (`quota.used`), its metadata, whether it has a record, its needs, the
-- bill of its attempt, and its queue (in a list; without a record all that it may be in).
function quota.charge(c, use)
    local key, attempt, bill = job_key(c, use.id), use.attempt, money.read_bill(use.bill)
    local ran_ms, tokens, prompt = tonumber(use.ran_ms), tonumber(use.tokens), tonumber(use.prompt)
    local f = redis.call('HMGET', key, unpack(CHARGED))
    if not f[8] then -- a stock tool deleted it
        local used = quota.used(tokens, ran_ms, bill.core, bill.cost, bill.currency)
        return used, nil, false, nil, bill, all_queues(c)
    end
    local had_tokens, had_ms, had_prompt = count(f[2]), count(f[3]), count(f[4])
    local base_tokens, base_ms, same = had_tokens, had_ms, f[5] == attempt
    if same then base_tokens, base_ms = count(f[6]), count(f[7]) end
    local now_tokens = math.max(had_tokens, base_tokens + tokens)
    local now_ms = math.max(had_ms, base_ms + ran_ms)
    local now_prompt = math.max(had_prompt, prompt)
    redis.call('HSET', key, 'aios_tokens', now_tokens, 'aios_ran_ms', now_ms,
        'aios_prompt_tokens', now_prompt, 'aios_charged_attempt', attempt,
        'aios_base_tokens', base_tokens, 'aios_base_ran_ms', base_ms)
    local pico, currency, nano, cached = 0, '', 0, 0
    if bill.core ~= '' then pico, currency, nano, cached = money.charge(c, key, bill, same, prompt) end
    if quota.metered(c) then
        local who = quota.owner(c, f[1] or nil)
        meter(c, who, bill, {now_tokens - had_tokens, now_prompt - had_prompt,
            (now_ms - had_ms) * who.width, 0, 0, cached}, nano)
    end
    return quota.used(now_tokens, now_ms, bill.core, pico, currency), f[1] or nil, true, f[9], bill,
        {home(c, f[10])}
end

-- A job has ended, well or not; `bill`: on which core, if any.
function quota.ended(c, metadata, well, bill)
    if not quota.metered(c) then return end
    meter(c, quota.owner(c, metadata), bill or money.NO_BILL, {0, 0, 0, well and 1 or 0, well and 0 or 1}, 0)
end

-- Why a job of these metadata may not run now: {'quota', limit, subject, used, limit's value, ms until it
-- may, -1: unknown}; nil: it may. `freed`: the metadata of one that runs now and counts as stopped.
function quota.barrier(c, metadata, freed)
    if not has_quotas(c) then return nil end
    freed = freed and quota.owner(c, freed)
    for i, subject in ipairs(quota.owner(c, metadata).limited) do
        local limits = quota.limits_of(c, subject)
        local most = limits.max_running
        if most then
            local runs = load_of(c, 'r ' .. subject)
            if freed and freed.limited[i] == subject then runs = runs - 1 end
            if runs >= most then return {'quota', 'max_running', subject, runs, most, -1} end
        end
        for kind, name in pairs({tokens = 'tokens_per_minute', ms = 'slot_seconds_per_minute'}) do
            local limit = limits[name]
            if limit then
                local unit = kind == 'ms' and 1000 or 1
                local left = level(c, kind, subject, limit * unit)
                if left <= 0 then
                    local wait_ms = limit > 0 and math.floor(-left * 60000 / (limit * unit)) + 1 or -1
                    return {'quota', name, subject, math.ceil(limit - left / unit), limit, wait_ms}
                end
            end
        end
    end
end

-- Has the owner of a running job used up its minute?
function quota.is_over(c, metadata)
    if not has_quotas(c) then return false end
    for _, subject in ipairs(quota.owner(c, metadata).limited) do
        local limits = quota.limits_of(c, subject)
        local tokens, slot_s = limits.tokens_per_minute, limits.slot_seconds_per_minute
        if tokens and level(c, 'tokens', subject, tokens) <= 0 then return true end
        if slot_s and level(c, 'ms', subject, slot_s * 1000) <= 0 then return true end
    end
    return false
end

-- A limit of an agent that has a default: its own, else its tenant's.
function quota.limit(c, who, name)
    return quota.limits_of(c, who.agent)[name] or quota.limits_of(c, who.tenant)[name] or DEFAULTS[name]
end

-- Nobody can have more than its share of a queue of this limit that is so short.
function quota.is_roomy(limit, waiting)
    return limit < SHARED_FROM or waiting <= limit * SHARES.agent
end

-- An operator has suspended this agent, or its tenant: {'stopped', subject}; nil: nobody has.
function quota.is_stopped(c, metadata)
    if c.stops == nil then admission.read_rules(c) end
    if not c.stops then return nil end
    c.stopped_known = c.stopped_known or {}
    for _, subject in ipairs(quota.owner(c, metadata).limited) do
        if c.stopped_known[subject] == nil then
            c.stopped_known[subject] = redis.call('HEXISTS', c.stopped, subject) == 1
        end
        if c.stopped_known[subject] then return {'stopped', subject} end
    end
end

-- To go before others is a right: the least nice value is its agent's limit, else its tenant's, else 0.
-- Returns the refusal of a job that asks for a lower one, or nil.
function quota.refuses_nice(c, job)
    local nice = tonumber(string.match(job.metadata, '"nice":(%-%d+)'))
    if not nice then return nil end
    local who = quota.owner(c, job.metadata)
    local least = quota.limit(c, who, 'min_nice')
    if nice < least then return {'nice', who.agent, nice, least} end
end

-- Does a new job fit what its owners may have waiting? `taken` counts, by subject, those of the
-- same batch that are taken; one that fits is counted in it. Returns the refusal, or nil.
function quota.refuses(c, job, taken)
    if not has_quotas(c) then return nil end
    local limited = quota.owner(c, job.metadata).limited
    for _, subject in ipairs(limited) do
        local most = quota.limits_of(c, subject).max_queued
        if not most and (c.max_waiting or 0) >= SHARED_FROM then
            most = math.floor(c.max_waiting * SHARES[string.match(subject, '^%a+')])
        end
        local waiting = load_of(c, 'q ' .. subject) + (taken[subject] or 0)
        if most and waiting >= most then return {'quota', 'max_queued', subject, waiting, most, 0, ''} end
    end
    local over = admission.unaffordable(c, job)
    if over then return over end
    for _, subject in ipairs(limited) do taken[subject] = (taken[subject] or 0) + 1 end
end

-- The COUNTED, exact however large they are.
local function joined(counts, between)
    local texts = {}
    for i = 1, COUNTED do texts[i] = text_of(counts[i]) end
    return table.concat(texts, between)
end

-- Write what this call has counted. Returns the lines of use for the journal.
local function write_uses(c)
    local sums, subjects, lines = {}, {}, {}
    for line, by in pairs(c.uses) do
        lines[#lines + 1] = line .. '\t' .. joined(by, '\t') .. '\t' .. text_of(by.nano)
        for _, scope in ipairs({'tenant', 'agent', 'program'}) do
            local subject = by.who[scope]
            local sum = sums[subject] or {0, 0, 0, 0, 0, 0, cost = {}}
            if not sums[subject] then subjects[#subjects + 1] = subject end
            sums[subject] = sum
            for i = 1, COUNTED do sum[i] = sum[i] + by[i] end
            if by.nano > 0 then sum.cost[by.currency] = (sum.cost[by.currency] or 0) + by.nano end
        end
    end
    local rows, ends = {}, {}
    local had = read_many('HMGET', quota_key(c, 'use'), subjects)
    for i, subject in ipairs(subjects) do
        local sum, j = sums[subject], 0
        for value in string.gmatch(had[i] or '', '%S+') do
            j = j + 1
            local currency, nano = string.match(value, '^(%u+)=(%d+)$')
            if currency then
                sum.cost[currency] = (sum.cost[currency] or 0) + nano
            elseif j <= COUNTED then
                sum[j] = sum[j] + value
            end
        end
        rows[#rows + 1] = subject
        rows[#rows + 1] = joined(sum, ' ')
        for currency, nano in pairs(sum.cost) do
            rows[#rows] = rows[#rows] .. ' ' .. currency .. '=' .. text_of(nano)
        end
        ends[#ends + 1] = c.now + USE_TTL_MS[string.match(subject, '^%a+')]
        ends[#ends + 1] = subject
    end
    variadic('HSET', quota_key(c, 'use'), rows)
    variadic('ZADD', quota_key(c, 'used'), ends)
    return table.concat(lines, '\n')
end

local function write_load(c)
    local rows, gone = {}, {}
    for field in pairs(c.load_changed) do
        local n = math.max(0, c.load[field])
        if n > 0 then
            rows[#rows + 1] = field
            rows[#rows + 1] = n
        else
            gone[#gone + 1] = field
        end
    end
    variadic('HSET', quota_key(c, 'load'), rows)
    variadic('HDEL', quota_key(c, 'load'), gone)
end

function quota.write(c)
    if c.load_changed then write_load(c) end
    if c.drained then
        local rows = {}
        for field in pairs(c.drained) do
            rows[#rows + 1] = field
            rows[#rows + 1] = string.format('%.3f %d', c.levels[field], c.now)
        end
        variadic('HSET', quota_key(c, 'bucket'), rows)
    end
    money.write(c)
    local lines = c.uses and write_uses(c)
    c.uses, c.load_changed, c.drained = nil, nil, nil
    return lines
end

-- Add these jobs to a load, from where they are.
local function add_jobs(c, ids, load)
    local metadata, members = {}, {}
    for i, id in ipairs(ids) do
        local f = redis.call('HMGET', job_key(c, id), 'aios_metadata', 'aios_attempt')
        metadata[i], members[i] = f[1] or nil, id .. ':' .. (f[2] or '0')
    end
    local leases = held_leases(c, members)
    for i = 1, #ids do
        local place = leases[i] and 'r' or 'q'
        load[place] = (load[place] or 0) + 1
        for _, subject in ipairs(quota.owner(c, metadata[i]).limited) do
            load[place .. ' ' .. subject] = (load[place .. ' ' .. subject] or 0) + 1
        end
    end
end

-- Count the next jobs anew, about `most` of them. Returns whether there are more; else the load is
-- what was counted. Costs a few us per job.
local function recount(c, most)
    local key, counted = quota_key(c, 'recount'), quota_key(c, 'recounted')
    local found = redis.call('HSCAN', c.live, redis.call('HGET', key, 'cursor') or '0', 'COUNT', most)
    local ids, new, load = {}, {}, {q = 0, r = 0}
    for i = 1, #found[2], 2 do ids[#ids + 1] = found[2][i] end
    for i, known in ipairs(read_many('SMISMEMBER', counted, ids)) do
        if known == 0 then new[#new + 1] = ids[i] end
    end
    variadic('SADD', counted, new)
    add_jobs(c, new, load)
    local fields, rows = {}, {'cursor', found[1], 'counted', c.now}
    for field in pairs(load) do fields[#fields + 1] = field end
    for i, had in ipairs(read_many('HMGET', key, fields)) do
        rows[#rows + 1] = fields[i]
        rows[#rows + 1] = count(had) + load[fields[i]]
    end
    variadic('HSET', key, rows)
    if found[1] ~= '0' then return true end
    redis.call('HDEL', key, 'cursor')
    redis.call('RENAME', key, quota_key(c, 'load'))
    redis.call('UNLINK', counted)
    c.load, c.load_changed, c.recounts = nil, nil, nil
    return false
end

-- Buckets that are full say nothing: a subject without one has its whole minute.
local function drop_full_buckets(c)
    local flat, gone = redis.call('HGETALL', quota_key(c, 'bucket')), {}
    for i = 1, #flat, 2 do
        local kind, subject = string.match(flat[i], '^(%a+) (.*)$')
        local limits = quota.limits_of(c, subject)
        local limit = kind == 'tokens' and limits.tokens_per_minute
            or kind == 'ms' and limits.slot_seconds_per_minute and limits.slot_seconds_per_minute * 1000
        if not limit or level(c, kind, subject, limit) >= limit then gone[#gone + 1] = flat[i] end
    end
    variadic('HDEL', quota_key(c, 'bucket'), gone)
end

local function recount_is_due(c, live)
    if redis.call('EXISTS', quota_key(c, 'recount')) == 1 then return true end
    local running = redis.call('ZCARD', c.leases)
    local age_ms = c.now - load_of(c, 'counted')
    local agrees = load_of(c, 'q') == live - running and load_of(c, 'r') == running
    return age_ms >= math.max(RECOUNT_MS, 2 * live) or not agrees and age_ms >= math.floor(live / RECOUNT_SHARE)
end

local function drop_load(c)
    redis.call('UNLINK', quota_key(c, 'load'), quota_key(c, 'bucket'), quota_key(c, 'recount'),
        quota_key(c, 'recounted'))
end

-- Without quotas the load is counted while a part of the queue is full. Returns whether that begins now.
local function count_while_long(c)
    if redis.call('EXISTS', quota_key(c, 'quota')) == 1 then
        redis.call('UNLINK', quota_key(c, 'counted'))
        return false
    end
    local limit = tonumber(redis.call('HGET', c.policy, 'max_waiting') or '100000')
    local live, counted = redis.call('HLEN', c.live), redis.call('EXISTS', quota_key(c, 'counted')) == 1
    if not counted and limit >= SHARED_FROM and live > limit * COUNTED_FROM then
        redis.call('SET', quota_key(c, 'counted'), 1)
        c.quotas = true
        return true
    end
    if counted and live < limit * COUNTED_FROM / 2 then
        redis.call('UNLINK', quota_key(c, 'counted'))
        drop_load(c)
        c.quotas, c.load, c.load_changed = false, nil, nil
    end
    return false
end

-- What the scheduler sees to: counters of programs that are over, and a load that disagrees with
-- the queue: a stock tool deleted jobs, or processes of an older release do not count them.
-- Returns whether so much is live that the caller is to count it anew, in parts.
function quota.sweep(c, all_at_once)
    local over = redis.call('ZRANGEBYSCORE', quota_key(c, 'used'), '-inf', c.now, 'LIMIT', 0, SWEPT)
    variadic('HDEL', quota_key(c, 'use'), over)
    variadic('ZREM', quota_key(c, 'used'), over)
    variadic('HDEL', c.marks, over)
    money.sweep(c)
    if count_while_long(c) then return true end
    if not has_quotas(c) then return false end
    if c.load_changed then write_load(c) end
    c.load, c.load_changed = nil, nil
    local live = redis.call('HLEN', c.live)
    if not recount_is_due(c, live) then return false end
    if live > math.min(all_at_once, RECOUNTED) then return true end
    local old = c.now - load_of(c, 'counted') >= RECOUNT_MS
    while recount(c, RECOUNTED) do end
    if old then drop_full_buckets(c) end
    return false
end

-- ARGV  prefix, module, who, agent:..., tenant:..., agent:* or tenant:*, the LIMITS with spaces
--       between, or '': no quota any more
-- Returns {1 when there was one before, else 0; 1 when the caller is to count the load, in parts}.
register('quota', function(c)
    local who, subject, limits, uncounted = take(c), take(c), take(c), 0
    local key = quota_key(c, 'quota')
    local had = redis.call('HEXISTS', key, subject)
    if limits ~= '' then
        redis.call('HSET', key, subject, limits)
        if redis.call('EXISTS', quota_key(c, 'load')) == 0 then uncounted = 1 end
        if uncounted == 1 and redis.call('HLEN', c.live) <= RECOUNTED then
            while recount(c, RECOUNTED) do end
            uncounted = 0
        end
    else
        redis.call('HDEL', key, subject)
        redis.call('HDEL', quota_key(c, 'bucket'), 'tokens ' .. subject, 'ms ' .. subject)
    end
    if redis.call('EXISTS', key) == 0 then
        drop_load(c)
    end
    if had == 1 or limits ~= '' then c.settings = table.concat({'quota', subject, limits, who}, '\t') end
    return {had, uncounted}
end)

-- ARGV  prefix, module, about how many jobs to count
-- A part of a count of the load. Returns 1 while there are more to count.
register('recount', function(c)
    if not has_quotas(c) or recount(c, tonumber(take(c))) then return has_quotas(c) and 1 or 0 end
    drop_full_buckets(c)
    return 0
end)

end
