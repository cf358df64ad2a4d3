-- register.lua: show a worker to RQ's tools and ours.
--
-- ARGV  prefix, module, worker, now (ISO), pid, hostname, version, slots, cores

register('register', function(c)
    local worker, iso, pid, hostname, version, slots, cores =
        take(c), take(c), take(c), take(c), take(c), take(c), take(c)
    local key = worker_key(c, worker)
    redis.call('DEL', key)
    redis.call('HSET', key, 'birth', iso, 'last_heartbeat', iso, 'queues', c.q, 'pid', pid,
        'hostname', hostname, 'version', version, 'state', 'idle', 'successful_job_count', 0,
        'failed_job_count', 0, 'total_working_time', 0, 'aios_slots', slots, 'aios_cores', cores)
    redis.call('EXPIRE', key, WORKER_TTL_S)
    redis.call('SADD', c.p .. ':workers', key)
    redis.call('SADD', c.p .. ':workers:' .. c.q, key)
    redis.call('SADD', c.p .. ':queues', c.queue)
    for core in string.gmatch(cores, '[^,]+') do redis.call('HSET', c.cores, core, c.now) end
    return {}
end)
