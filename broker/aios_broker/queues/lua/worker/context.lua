-- context.lua: conversations that the kernel keeps for agents, by name.
--
-- Keys  aios:context:<owner>           hash: version (changes), rewrites (changes that were not at
--                                      the end), bytes, and whose it is
--       aios:context:<owner>:messages  list of messages (JSON)
--       aios:context-op:<syscall>      hash: what a syscall found (base, rewrites) and whether it
--                                      is done: one that runs again after a crash changes nothing
--                                      twice, and sees what it saw before
--
-- context_open   ARGV  prefix, module, a ContextRow
--                Returns {version, rewrites, applied (0 | 1), message...}: the messages that were
--                there when the syscall first looked.
-- context_write  ARGV  prefix, module, a ContextRow, a ContextChangeRow, n, message...
--                Returns {'ok', version, messages}, {'full', messages, bytes}, {'limit', name, subject,
--                used, most}, {'changed'} or {'lost'}; only the first has changed anything.
--
-- What a syscall found is kept for as long as it may run, and OP_SPARE_S longer: op_ttl_s at most.

local OP_SPARE_S = 3600

local function context_of(c)
    local at = read.context(c)
    at.key = c.own .. 'context:' .. at.owner
    at.list, at.op = at.key .. ':messages', c.own .. 'context-op:' .. at.syscall
    local deadline = tonumber(redis.call('HGET', job_key(c, at.syscall), 'aios_deadline_ms') or nil)
    if deadline then
        local left_s = math.max(0, math.ceil((deadline - c.now) / 1000))
        at.op_ttl_s = math.min(tonumber(at.op_ttl_s), left_s + OP_SPARE_S)
    end
    return at
end

local function read_facts(at)
    local f = redis.call('HMGET', at.key, 'version', 'rewrites', 'bytes')
    return {version = count(f[1]), rewrites = count(f[2]), bytes = count(f[3]),
        messages = redis.call('LLEN', at.list)}
end

local function keep_alive(at)
    redis.call('EXPIRE', at.key, at.ttl_s)
    redis.call('EXPIRE', at.list, at.ttl_s)
    redis.call('EXPIRE', at.op, at.op_ttl_s)
end

register('context_open', function(c)
    local at = context_of(c)
    local facts = read_facts(at)
    local op = redis.call('HMGET', at.op, 'base', 'rewrites', 'applied')
    local base = tonumber(op[1])
    if not op[3] and (not base or count(op[2]) ~= facts.rewrites) then
        base = facts.messages
        redis.call('HSET', at.op, 'base', base, 'rewrites', facts.rewrites)
    end
    keep_alive(at)
    local answer = {facts.version, facts.rewrites, op[3] and 1 or 0}
    if base > 0 then
        for _, message in ipairs(redis.call('LRANGE', at.list, 0, base - 1)) do
            answer[#answer + 1] = message
        end
    end
    return answer
end)

local function bytes_of(messages)
    local sum = 0
    for _, message in ipairs(messages) do sum = sum + #message end
    return sum
end

-- What stands in the list afterwards: first messages that go, and whether the new ones come first.
local function plan(at, facts, how, drop)
    if how == 'append' then return {} end
    if how == 'replace' then
        return drop > 0 and redis.call('LRANGE', at.list, 0, drop - 1) or {}
    end
    return redis.call('LRANGE', at.list, 0, -1)
end

local function put(at, how, gone, messages)
    if #gone > 0 then redis.call('LTRIM', at.list, #gone, -1) end
    if how == 'replace' then
        for i = #messages, 1, -1 do redis.call('LPUSH', at.list, messages[i]) end
    else
        variadic('RPUSH', at.list, messages)
    end
end

-- May an agent keep a context of so many bytes, this one among those it has? Returns the refusal, or nil. The
-- contexts of an agent: a zset of names, each with its bytes, and one with when they are dropped.
local function keep_within_limits(c, change, at, bytes)
    local who = {agent = 'agent:' .. change.tenant .. ' ' .. change.agent, tenant = 'tenant:' .. change.tenant}
    local sizes, ends = c.own .. 'contexts:' .. who.agent, c.own .. 'context_ends:' .. who.agent
    if change.how == 'clear' then
        redis.call('ZREM', sizes, change.name)
        redis.call('ZREM', ends, change.name)
        return nil
    end
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', c.now)) do
        redis.call('ZREM', sizes, name)
        redis.call('ZREM', ends, name)
    end
    local n, sum, had = 1, bytes, 0
    local all = redis.call('ZRANGE', sizes, 0, -1, 'WITHSCORES')
    for i = 1, #all, 2 do
        if all[i] == change.name then
            had = tonumber(all[i + 1])
        else
            n, sum = n + 1, sum + all[i + 1]
        end
    end
    local most, most_bytes = quota.limit(c, who, 'max_contexts'), quota.limit(c, who, 'max_context_bytes')
    if n > most and had == 0 then return {'limit', 'max_contexts', who.agent, n, most} end
    if sum > most_bytes and bytes > had then return {'limit', 'max_context_bytes', who.agent, sum, most_bytes} end
    redis.call('ZADD', sizes, bytes, change.name)
    redis.call('ZADD', ends, c.now + at.ttl_s * 1000, change.name)
    redis.call('EXPIRE', sizes, at.ttl_s)
    redis.call('EXPIRE', ends, at.ttl_s)
end

register('context_write', function(c)
    local at, change, messages = context_of(c), read.contextchange(c), {}
    local how, drop, attempt = change.how, tonumber(change.drop), change.attempt
    for i = 1, tonumber(take(c)) do messages[i] = take(c) end
    if attempt ~= '' and not redis.call('ZSCORE', c.leases, at.syscall .. ':' .. attempt) then
        return {'lost'}
    end
    local facts = read_facts(at)
    if redis.call('HGET', at.op, 'applied') then return {'ok', facts.version, facts.messages} end
    if how == 'replace' and (tonumber(change.rewrites) ~= facts.rewrites or drop > facts.messages) then
        return {'changed'}
    end
    local gone = plan(at, facts, how, drop)
    local n = facts.messages - #gone + #messages
    local bytes = facts.bytes - bytes_of(gone) + bytes_of(messages)
    if #messages > 0 and (n > tonumber(change.max_messages) or bytes > tonumber(change.max_bytes)) then
        return {'full', n, bytes}
    end
    local refusal = keep_within_limits(c, change, at, bytes)
    if refusal then return refusal end
    put(at, how, gone, messages)
    redis.call('HSET', at.key, 'version', facts.version + 1, 'bytes', bytes,
        'rewrites', facts.rewrites + (how == 'append' and 0 or 1),
        'tenant', change.tenant, 'agent', change.agent, 'name', change.name)
    redis.call('HSET', at.op, 'applied', facts.version + 1)
    redis.call('HSETNX', at.op, 'base', facts.messages)
    keep_alive(at)
    if n == 0 then redis.call('EXPIRE', at.key, at.op_ttl_s) end -- nothing is kept for whoever fills and clears
    return {'ok', facts.version + 1, n}
end)
