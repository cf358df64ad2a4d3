-- block.lua: one agent's block of notes in Redis, and which of them leave it (LRU-K).
--
-- KEYS  the slot key of the deployment (queues/keys.py)
-- ARGV  prefix, owner, now_us (0: this server's clock), and what the step names below
--
-- Keys  aios:memory:<owner>           hash: run, limit, used, k, correlated, high, low, count, floor,
--                                     hits, faults, swaps
--       aios:memory:<owner>:notes     hash: id -> the note (JSON)
--       aios:memory:<owner>:sizes     hash: id -> version, bytes, expires_us (0: never)
--       aios:memory:<owner>:refs      hash: id -> last, hist 1..K (us; 0: not so many references)
--       aios:memory:<owner>:recent    zset: resident, last used less than the correlated period ago
--                                     (or not looked at since): score last
--       aios:memory:<owner>:young     zset: resident, fewer than K references: score last
--       aios:memory:<owner>:old       zset: resident, K references: score hist K
--       aios:memory:<owner>:retained  zset: not resident, history kept: score last
--       aios:memory:<owner>:changed   zset: id -> count of its latest change
--       aios:memory:totals            hash: used, notes, hits, faults, swaps of all blocks
--       aios:memory:blocks            hash: owner -> whose it is
--
-- A block belongs to one life of one server process (`run`). One that was restarted or promoted may
-- lack the last changes: its blocks begin empty. Every change of a note advances `count`; a put
-- carries the count that its reader or writer had seen (a token), and is refused where the note has
-- changed since. Each step answers {'unknown'} where there is no such block, but for `open` and those
-- that take notes out.

local LIB = 'aiosmem2_'
local RETAIN_US = 3600 * 1000000 -- history of a note that left counts for so long
local MAX_RETAINED = 4096        -- histories of notes that left, per block
local CHANGES = 1024             -- changes that are remembered one by one, per block
local SORTED = 1000              -- notes that one step takes out of `recent`
local VICTIMS = 256              -- notes that one step names to leave
local PAGE = 32

local run        -- of this server process
local newest = 0 -- the highest count that was handed out since the library was loaded

local function str(number) return string.format('%.0f', number) end

local function clock_us()
    local time = redis.call('TIME')
    return time[1] * 1000000 + time[2]
end

local function server_run()
    run = run or string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
    return run
end

local function keep_count(b, count)
    b.count = count
    newest = math.max(newest, count)
    redis.call('HSET', b.key, 'count', str(count))
end

-- Tokens that were handed out before are worthless from here on.
local function begin_anew(b)
    keep_count(b, math.max(b.count + 1, newest + 1, clock_us()))
    b.floor = b.count
    redis.call('HSET', b.key, 'floor', str(b.floor))
end

local function add(b, field, n)
    if n == 0 then return end
    if field ~= 'notes' then redis.call('HINCRBY', b.key, field, str(n)) end
    redis.call('HINCRBY', b.totals, field, str(n))
end

local function use(b, bytes, notes)
    b.used = b.used + bytes
    add(b, 'used', bytes)
    add(b, 'notes', notes)
end

local function empty(b)
    local notes = redis.call('HLEN', b.notes)
    redis.call('UNLINK', b.notes, b.sizes, b.refs, b.recent, b.young, b.old, b.retained, b.changed)
    use(b, -b.used, -notes)
    begin_anew(b)
    return notes
end

local function open(args)
    local own = args[1] .. ':aios:memory:'
    local key = own .. args[2]
    local b = {key = key, owner = args[2], totals = own .. 'totals', blocks = own .. 'blocks',
        notes = key .. ':notes', sizes = key .. ':sizes', refs = key .. ':refs',
        recent = key .. ':recent', young = key .. ':young', old = key .. ':old',
        retained = key .. ':retained', changed = key .. ':changed', args = args, at = 4}
    b.now = tonumber(args[3])
    if b.now == 0 then b.now = clock_us() end
    local f = redis.call('HMGET', key, 'run', 'limit', 'used', 'k', 'correlated', 'high', 'low',
        'count', 'floor')
    b.known = f[2] and true
    b.limit, b.used, b.k = tonumber(f[2] or 0), tonumber(f[3] or 0), tonumber(f[4] or 0)
    b.correlated, b.high, b.low = tonumber(f[5] or 0), tonumber(f[6] or 0), tonumber(f[7] or 0)
    b.count, b.floor = tonumber(f[8] or 0), tonumber(f[9] or 0)
    if b.known and f[1] ~= server_run() then
        empty(b)
        redis.call('HSET', key, 'run', server_run())
    end
    return b
end

local function take(b)
    local value = b.args[b.at]
    b.at = b.at + 1
    return value
end

local function rest(b)
    local values = {}
    for i = b.at, #b.args do values[#values + 1] = b.args[i] end
    return values
end

local function register(step, body, flags, anyway)
    local function callback(_, args)
        local b = open(args)
        if not b.known and not anyway then return {'unknown'} end
        return body(b)
    end
    redis.register_function{function_name = LIB .. step, callback = callback, flags = flags}
end

local FREES = {'allow-oom'}

local function token(b) return server_run() .. ':' .. str(b.count) end

local function size_of(b, id)
    local value = redis.call('HGET', b.sizes, id)
    if not value then return nil end
    local version, bytes, expires = string.match(value, '(%d+) (%d+) (%d+)')
    return {version = tonumber(version), bytes = tonumber(bytes), expires = tonumber(expires)}
end

local function history(b, id)
    local value = redis.call('HGET', b.refs, id)
    if not value then return nil, {} end
    local numbers = {}
    for number in string.gmatch(value, '%d+') do numbers[#numbers + 1] = tonumber(number) end
    return table.remove(numbers, 1), numbers
end

-- A reference, as the algorithm of O'Neil, O'Neil and Weikum notes it.
local function refer(b, id, resident)
    local last, hist = history(b, id)
    if last and not resident and b.now - last > RETAIN_US then last, hist = nil, {} end
    local now = math.max(b.now, last or 0)
    if not last or now - last > b.correlated then
        local period = resident and last - hist[1] or 0
        for i = b.k, 2, -1 do
            local before = hist[i - 1] or 0
            hist[i] = before > 0 and before + period or 0
        end
        hist[1] = now
    end
    local parts = {str(now)}
    for i = 1, b.k do parts[i + 1] = str(hist[i] or 0) end
    redis.call('HSET', b.refs, id, table.concat(parts, ' '))
    redis.call('ZREM', b.young, id)
    redis.call('ZREM', b.old, id)
    redis.call('ZREM', b.retained, id)
    redis.call('ZADD', b.recent, str(now), id)
end

-- Those whose correlated period is over may leave: into the order in which they will.
local function sort_recent(b)
    local over = redis.call('ZRANGEBYSCORE', b.recent, '-inf', '(' .. str(b.now - b.correlated),
        'LIMIT', 0, SORTED)
    for _, id in ipairs(over) do
        local last, hist = history(b, id)
        redis.call('ZREM', b.recent, id)
        if (hist[b.k] or 0) > 0 then
            redis.call('ZADD', b.old, str(hist[b.k]), id)
        else
            redis.call('ZADD', b.young, str(last), id)
        end
    end
    return #over
end

local function forget(b, id)
    redis.call('HDEL', b.refs, id)
    redis.call('ZREM', b.retained, id)
end

local function trim_retained(b)
    local overdue = redis.call('ZRANGEBYSCORE', b.retained, '-inf',
        '(' .. str(b.now - RETAIN_US), 'LIMIT', 0, PAGE)
    for _, id in ipairs(overdue) do forget(b, id) end
    while redis.call('ZCARD', b.retained) > MAX_RETAINED do
        forget(b, redis.call('ZRANGE', b.retained, 0, 0)[1])
    end
end

local function take_out(b, id, size, retain)
    redis.call('HDEL', b.notes, id)
    redis.call('HDEL', b.sizes, id)
    redis.call('ZREM', b.recent, id)
    redis.call('ZREM', b.young, id)
    redis.call('ZREM', b.old, id)
    use(b, -size.bytes, -1)
    if retain then
        redis.call('ZADD', b.retained, str(history(b, id)), id)
        trim_retained(b)
    else
        forget(b, id)
    end
end

local function is_over(size, now) return size.expires > 0 and size.expires <= now end

-- open: limit, k, correlated_us, high, low, whose. Makes the block, or changes what it is like;
-- another K begins with an empty one. Returns {'ok', 1 where it is above its high watermark}.
register('open', function(b)
    local limit, k = tonumber(take(b)), tonumber(take(b))
    local correlated, high, low, whose = take(b), tonumber(take(b)), take(b), take(b)
    if not b.known then
        redis.call('HSET', b.key, 'run', server_run(), 'used', 0)
        begin_anew(b)
    elseif k ~= b.k then
        add(b, 'swaps', empty(b))
    end
    redis.call('HSET', b.key, 'limit', str(limit), 'k', k, 'correlated', correlated,
        'high', high, 'low', low)
    redis.call('HSET', b.blocks, b.owner, whose)
    return {'ok', b.used > high * limit and 1 or 0}
end, {}, true)

-- read: id. Returns {'hit', note}, which counts as a reference, or {'miss'}.
register('read', function(b)
    local id = take(b)
    local size = size_of(b, id)
    if not size then return {'miss'} end
    if is_over(size, b.now) then
        take_out(b, id, size, false)
        return {'miss'}
    end
    refer(b, id, true)
    add(b, 'hits', 1)
    return {'hit', redis.call('HGET', b.notes, id)}
end, FREES)

-- token. Returns {'ok', token}.
register('token', function(b) return {'ok', token(b)} end, FREES)

local function is_stale(b, id, held)
    local of_run, count = string.match(held, '^(%x+):(%d+)$')
    if of_run ~= server_run() or tonumber(count) < b.floor then return true end
    return tonumber(redis.call('ZSCORE', b.changed, id) or 0) > tonumber(count)
end

-- put: id, token, version, bytes, expires_us, fault (0 | 1), note. Returns {'ok', 1 where the block
-- is above its high watermark now}; or {'stale'}, {'full'}, and nothing was changed.
register('put', function(b)
    local id, held, version, bytes = take(b), take(b), tonumber(take(b)), tonumber(take(b))
    local expires, fault, note = take(b), tonumber(take(b)), take(b)
    local size = size_of(b, id)
    if is_stale(b, id, held) or size and size.version > version then return {'stale'} end
    local more = bytes - (size and size.bytes or 0)
    if b.used + more > b.limit then return {'full'} end
    redis.call('HSET', b.notes, id, note)
    redis.call('HSET', b.sizes, id, str(version) .. ' ' .. str(bytes) .. ' ' .. expires)
    use(b, more, size and 0 or 1)
    refer(b, id, size and true)
    add(b, 'faults', fault)
    return {'ok', b.used > b.high * b.limit and 1 or 0}
end, {})

-- invalidate: forget (0 | 1: their history, too), id... The caller holds the rows' locks. Returns
-- {'ok', token}: with it the caller may put what it commits. Of a block that is not open: {'ok', ''},
-- since it holds nothing, and what was handed out before it is opened is worthless then.
register('invalidate', function(b)
    if not b.known then return {'ok', ''} end
    local retain = take(b) == '0'
    keep_count(b, b.count + 1)
    for _, id in ipairs(rest(b)) do
        local size = size_of(b, id)
        if size then take_out(b, id, size, retain) end
        if not retain then forget(b, id) end
        redis.call('ZADD', b.changed, str(b.count), id)
    end
    local surplus = redis.call('ZCARD', b.changed) - CHANGES
    if surplus > 0 then
        local gone = redis.call('ZPOPMIN', b.changed, surplus)
        b.floor = math.max(b.floor, tonumber(gone[#gone]))
        redis.call('HSET', b.key, 'floor', str(b.floor))
    end
    return {'ok', token(b)}
end, FREES, true)

-- drop. Everything leaves, with its history; no earlier token is worth anything. Returns {'ok', n}.
register('drop', function(b) return {'ok', b.known and empty(b) or 0} end, FREES, true)

-- victims: goes_on (0: only above the high watermark; 1: down to the low one). Returns {'none'},
-- {'more'} (call again), or {'some', id, version, ...}, first to leave first; they stay as yet.
register('victims', function(b)
    local line = take(b) == '1' and b.low or b.high
    if b.used <= line * b.limit then return {'none'} end
    if sort_recent(b) == SORTED then return {'more'} end
    local answer, surplus = {'some'}, b.used - b.low * b.limit
    for _, order in ipairs({b.young, b.old, b.recent}) do
        local first = 0
        while surplus > 0 and #answer <= 2 * VICTIMS do
            local ids = redis.call('ZRANGE', order, first, first + PAGE - 1)
            if #ids == 0 then break end
            for _, id in ipairs(ids) do
                if surplus <= 0 then break end
                local size = size_of(b, id)
                surplus = surplus - size.bytes
                answer[#answer + 1] = id
                answer[#answer + 1] = size.version
            end
            first = first + PAGE
        end
    end
    return answer
end, FREES)

-- free: id, version, ... Takes those out that are still of that version. Returns {'ok', n}.
register('free', function(b)
    local pairs_, n = rest(b), 0
    for i = 1, #pairs_, 2 do
        local size = size_of(b, pairs_[i])
        if size and size.version == tonumber(pairs_[i + 1]) then
            take_out(b, pairs_[i], size, true)
            n = n + 1
        end
    end
    add(b, 'swaps', n)
    return {'ok', n}
end, FREES)

-- touch: id... A reference to each that is resident. Returns {'ok', n}.
register('touch', function(b)
    local n = 0
    for _, id in ipairs(rest(b)) do
        local size = size_of(b, id)
        if size and not is_over(size, b.now) then
            refer(b, id, true)
            n = n + 1
        end
    end
    return {'ok', n}
end, FREES)

-- stat. Returns {'ok', limit, used, notes, hits, faults, swaps, k, correlated_us, high, low}.
register('stat', function(b)
    local f = redis.call('HMGET', b.key, 'limit', 'used', 'hits', 'faults', 'swaps', 'k',
        'correlated', 'high', 'low')
    for i = 1, #f do f[i] = f[i] or '0' end
    return {'ok', f[1], f[2], redis.call('HLEN', b.notes), f[3], f[4], f[5], f[6], f[7], f[8], f[9]}
end, FREES)
