-- retry.lua: run jobs that have failed once more, each under its own id: who asks for it hears the new
-- reply. It is taken in as a new syscall would be, so quotas, cores and suspensions are asked again.
--
-- ARGV  prefix, module, now (ISO), who asks (`tenant agent`; empty: an operator), id...
-- Returns per job done | alive | ended (it has not failed) | unknown | bodiless: what it was is not known
-- any more; or why it is not taken: full | unread | core | unserved | quota | stopped | nice.

local OF_ITS_LIFE = {'started_at', 'ended_at', 'exc_info', 'worker_name'}

local function retry(c, id, policy, iso, who)
    local key = job_key(c, id)
    local status, data, metadata, needs, origin = unpack(call('HMGET', key, 'status', 'data',
        'aios_metadata', 'aios_needs', 'origin'))
    if not data or not metadata or who ~= '' and not is_of(c, who, metadata) then return 'unknown' end
    if call('HEXISTS', c.live, id) == 1 then return 'alive' end
    if status ~= 'failed' then return 'ended' end
    if failures.is_dropped(data) then return 'bodiless' end
    local job = {id = id, client = '', metadata = metadata, needs = needs or ''}
    local refusal = refusal_of(c, job, waiting_in(c), policy.limit, {}, policy.refuses)
    if refusal then return refusal[1] end
    local at = route(c, job)
    call('ZREM', home(c, origin).failed, id)
    call('ZREM', c.quarantine, id)
    call('HDEL', key, unpack(OF_ITS_LIFE))
    call('HSET', key, 'status', 'queued', 'origin', at.name)
    adopt(c, id, iso)
    if at.core ~= '' then call('SADD', c.queues, at.name) end
    call('RPUSH', at.queue, id)
    call('SADD', c.p .. ':queues', at.queue)
    return 'done'
end

register('retry', function(c)
    local iso, who, answer = take(c), take(c), {}
    local limit, unserved = unpack(call('HMGET', c.policy, 'max_waiting', 'unserved_core'))
    c.max_waiting = tonumber(limit or '100000')
    local policy = {limit = c.max_waiting, refuses = unserved == 'refuse'}
    while c.at <= #c.args do answer[#answer + 1] = retry(c, take(c), policy, iso, who) end
    return answer
end)
