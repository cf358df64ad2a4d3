-- register.lua: show a worker to RQ's tools and ours.
--
-- ARGV  prefix, module, a WorkerRow

register('register', function(c)
    local row = read.worker(c)
    local key, iso = worker_key(c, row.worker), row.iso
    redis.call('DEL', key)
    redis.call('HSET', key, 'birth', iso, 'last_heartbeat', iso, 'queues', c.q, 'pid', row.pid,
        'hostname', row.hostname, 'version', row.version, 'state', 'idle', 'successful_job_count', 0,
        'failed_job_count', 0, 'total_working_time', 0, 'aios_slots', row.slots, 'aios_cores', row.cores)
    redis.call('EXPIRE', key, WORKER_TTL_S)
    redis.call('SADD', c.p .. ':workers', key)
    redis.call('SADD', c.p .. ':workers:' .. c.q, key)
    redis.call('SADD', c.p .. ':queues', c.queue)
    for core in string.gmatch(row.cores, '[^,]+') do redis.call('HSET', c.cores, core, c.now) end
    return {}
end)
