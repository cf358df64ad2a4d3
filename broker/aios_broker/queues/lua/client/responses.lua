-- responses.lua: answers that are kept for the agent that asked, each under its id.
--
-- Keys  aios:responses:<owner>          hash: id -> record; `bytes`: of all records
--       aios:response_order:<owner>     zset: id -> ms when it was first kept
--       aios:response_context:<owner>   hash: id -> the context that it stands in
--       aios:response_next:<owner>      hash: id -> the one that goes on with it in that context
--       aios:response_count:<owner>     hash: context -> how many of those kept stand in it
--
-- response_put    ARGV  prefix, module, a ResponseRow
--                 Returns {'ok', context...}: contexts in which none of those kept stands any more, because
--                 the oldest had to go; or {'gone'}: it was to be known already, and is not.
-- response_claim  ARGV  prefix, module, owner, id, who goes on with it
--                 Returns 1: it is the first, or was; 0: another one is, or there is none of that id.
-- response_drop   ARGV  prefix, module, owner, id
--                 Returns {'ok', context...}, or {'gone'}.

local function of_owner(c, owner)
    return {records = c.own .. 'responses:' .. owner, order = c.own .. 'response_order:' .. owner,
        context = c.own .. 'response_context:' .. owner, next = c.own .. 'response_next:' .. owner,
        count = c.own .. 'response_count:' .. owner}
end

local function drop(at, id, freed)
    redis.call('HINCRBY', at.records, 'bytes', -redis.call('HSTRLEN', at.records, id))
    redis.call('HDEL', at.records, id)
    redis.call('ZREM', at.order, id)
    redis.call('HDEL', at.next, id)
    local context = redis.call('HGET', at.context, id)
    if not context then return end
    redis.call('HDEL', at.context, id)
    if redis.call('HINCRBY', at.count, context, -1) <= 0 then
        redis.call('HDEL', at.count, context)
        freed[#freed + 1] = context
    end
end

register('response_put', function(c)
    local row = read.response(c)
    local at, id, answer = of_owner(c, row.owner), row.id, {'ok'}
    local known = redis.call('HSTRLEN', at.records, id)
    if row.known == '1' and known == 0 then return {'gone'} end
    redis.call('HSET', at.records, id, row.record)
    local bytes = redis.call('HINCRBY', at.records, 'bytes', #row.record - known)
    if known == 0 then
        redis.call('ZADD', at.order, c.now, id)
        if row.context ~= '' then
            redis.call('HSET', at.context, id, row.context)
            redis.call('HINCRBY', at.count, row.context, 1)
        end
    end
    local most, most_bytes = tonumber(row.most), tonumber(row.most_bytes)
    while redis.call('ZCARD', at.order) > 1 and (redis.call('ZCARD', at.order) > most or bytes > most_bytes) do
        local oldest = redis.call('ZRANGE', at.order, 0, 1)
        drop(at, oldest[1] == id and oldest[2] or oldest[1], answer)
        bytes = tonumber(redis.call('HGET', at.records, 'bytes'))
    end
    for _, key in pairs(at) do redis.call('EXPIRE', key, row.ttl_s) end
    return answer
end)

register('response_claim', function(c)
    local at, id, by = of_owner(c, take(c)), take(c), take(c)
    if redis.call('HEXISTS', at.records, id) == 0 then return 0 end
    redis.call('HSETNX', at.next, id, by)
    redis.call('EXPIRE', at.next, redis.call('TTL', at.records))
    return redis.call('HGET', at.next, id) == by and 1 or 0
end)

register('response_drop', function(c)
    local at, id, answer = of_owner(c, take(c)), take(c), {'ok'}
    if redis.call('HEXISTS', at.records, id) == 0 then return {'gone'} end
    drop(at, id, answer)
    return answer
end)
