-- stop.lua: suspend an agent or a tenant: nothing of theirs is taken, and what is live ends.
--
-- The suspended ones are in the hash aios:stopped, of all modules, from which a submit is refused; what is
-- live is found by `owned` and ended by `cancel`. Their truth is in Postgres.

-- ARGV  prefix, module, subject (agent:T A | tenant:T), who; an empty who: it is resumed
-- Returns 1 where that changed something.
register('stop', function(c)
    local subject, who = take(c), take(c)
    if who == '' then return redis.call('HDEL', c.stopped, subject) end
    return redis.call('HSET', c.stopped, subject, who)
end)

-- ARGV  prefix, module, cursor, about how many live jobs to look at, subject (agent:T A | tenant:T |
--       program:T A P)...
-- Returns {the next cursor, 0 at the end; ids of the jobs that are any subject's...}.
register('owned', function(c)
    local cursor, most, wanted = take(c), take(c), {}
    while c.at <= #c.args do wanted[take(c)] = true end
    local found = redis.call('HSCAN', c.live, cursor, 'COUNT', most)
    local answer = {found[1]}
    for i = 1, #found[2], 2 do
        local id = found[2][i]
        local metadata = redis.pcall('HGET', job_key(c, id), 'aios_metadata')
        if type(metadata) == 'string' then
            local who = quota.owner(c, metadata)
            if wanted[who.agent] or wanted[who.tenant] or wanted[who.program] then answer[#answer + 1] = id end
        end
    end
    return answer
end, {'no-writes'})
