-- vouch.lua: a stock producer's job becomes its agent's: the token that it carries is exchanged for the
-- agent, and is in its record no more. One that is not to run loses its arguments, without metadata.
--
-- ARGV  prefix, module, a VouchRow
-- Returns 1; or, and nothing was changed: 0: the lease is gone; as submit does: {'denied'}: the token is
-- not that agent's; {'stopped', subject}; {'nice', subject, value, least}. What Redis' append-only file has
-- of the token is for the scheduler (`rewrite`).

register('vouch', function(c)
    local job = read.vouch(c)
    local key = job_key(c, job.id)
    if not call('ZSCORE', c.leases, job.id .. ':' .. job.attempt) then return 0 end
    if call('HEXISTS', key, 'status') == 0 then return 0 end
    if job.metadata ~= '' then
        if not holds_token(c, job.token_digest, job.metadata) then return {'denied'} end
        local refusal = quota.is_stopped(c, job.metadata) or quota.refuses_nice(c, job)
        if refusal then return refusal end
        local known = call('HGET', key, 'aios_metadata')
        quota.moved(c, known or nil, 'r', nil, job.id)
        quota.moved(c, job.metadata, nil, 'r', job.id)
        call('HSET', key, 'aios_metadata', job.metadata)
    end
    call('HSET', key, 'data', job.data, 'description', job.description)
    call('SET', c.own .. 'rewrite', text(c, c.now), 'NX')
    return 1
end)
