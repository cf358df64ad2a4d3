-- attach.lua: one more client hears of a job.
--
-- ARGV  prefix, module, id, client, who asks (`tenant agent`; empty: an operator)
-- Returns {state, reply}: the stored reply when the job ended, else false; state `unknown` when
-- there is no such job, it is another agent's, or its reply has expired.

local function state_of(c, id, status, suspensions)
    if status == 'queued' then return count(suspensions) > 0 and 'suspended' or 'queued' end
    if status == 'started' then return 'running' end
    if status == 'deferred' then
        return redis.call('ZSCORE', c.parked, id) and 'parked' or 'held'
    end
    if status == 'finished' then return 'finished' end
    if status == 'canceled' then return 'cancelled' end
    return 'failed'
end

register('attach', function(c)
    local id, client, who = take(c), take(c), take(c)
    local status, reply, suspensions, metadata = unpack(redis.call('HMGET', job_key(c, id), 'status',
        'aios_reply', 'aios_suspensions', 'aios_metadata'))
    if status and not is_of(c, who, metadata) then return {'unknown', false} end
    -- Whose a live one without a record is, nobody knows: its owner waits for it already.
    local is_live = (status or who == '') and join(c, id, client) or call('HGET', c.live, id)
    if not is_live and not reply then return {'unknown', false} end
    return {state_of(c, id, status, suspensions), not is_live and reply}
end)
