-- register.lua: show a worker to RQ's tools and ours.
--
-- ARGV  prefix, module, a WorkerRow, n, n CardRows
--
-- Returns nothing, or the process and the host of another worker that lives under this name: then nothing is changed.

local function taken(key, row, now)
    local instance, seen_ms, lease_ms, pid, host, death = unpack(redis.call('HMGET', key, 'aios_instance',
        'aios_seen_ms', 'aios_lease_ms', 'pid', 'hostname', 'death'))
    if not instance or instance == row.instance or death then return nil end
    return tonumber(seen_ms or 0) + tonumber(lease_ms or 0) > now and {pid, host} or nil
end

register('register', function(c)
    local row = read.worker(c)
    local cards, queues = read_rows(c, read.card), {}
    for i, card in ipairs(cards) do queues[i] = c.q .. '.' .. card.name end
    queues[#queues + 1] = c.q
    local key, iso = worker_key(c, row.worker), row.iso
    local other = taken(key, row, c.now)
    if other then return other end
    redis.call('DEL', key)
    redis.call('HSET', key, 'birth', iso, 'last_heartbeat', iso, 'queues', table.concat(queues, ','), 'pid', row.pid,
        'hostname', row.hostname, 'version', row.version, 'state', 'idle', 'successful_job_count', 0,
        'failed_job_count', 0, 'total_working_time', 0, 'aios_slots', row.slots, 'aios_cores', row.cores,
        'aios_instance', row.instance)
    redis.call('EXPIRE', key, WORKER_TTL_S)
    redis.call('SADD', c.p .. ':workers', key)
    for _, name in ipairs(queues) do redis.call('SADD', c.p .. ':workers:' .. name, key) end
    redis.call('SADD', c.p .. ':queues', c.queue)
    routes.register(c, row.worker, row.slots, cards)
    return {}
end)
