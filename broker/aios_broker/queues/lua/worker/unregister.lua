-- unregister.lua: take a worker that stops in good order off the books.
--
-- ARGV  prefix, module, worker, now (ISO)

register('unregister', function(c)
    local worker, iso = take(c), take(c)
    local key = worker_key(c, worker)
    redis.call('SREM', c.p .. ':workers', key)
    redis.call('SREM', c.p .. ':workers:' .. c.q, key)
    for core in string.gmatch(redis.call('HGET', key, 'aios_cores') or '', '[^,]+') do
        redis.call('SREM', c.p .. ':workers:' .. c.q .. '.' .. core, key)
        redis.call('HDEL', c.serving, core .. ' ' .. worker)
    end
    redis.call('DEL', key .. ':executions')
    if redis.call('EXISTS', key) == 1 then
        redis.call('HSET', key, 'death', iso, 'state', 'idle')
        redis.call('EXPIRE', key, 60)
    end
    return {}
end)
