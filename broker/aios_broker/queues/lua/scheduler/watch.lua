-- watch.lua: what a policy sees that goes by the use of programs, agents or tenants: its subjects, as in
-- quota.lua. Keys, per module; there are none of them while the policy in force does not watch:
--   aios:watch    hash: policy, scope (program | agent | tenant): whose counters it goes by
--   aios:touched  hash: subject -> how often its counters, or what runs of it, have moved since its
--                 jobs were ranked. Kept by quota.lua, emptied by reorder.lua
--   aios:ranked   zset, all of score 0, by name: `subject<tab>id` of jobs that have a score
--   aios:marks    hash: subject -> a number that the policy remembers of it
do
    -- ARGV  prefix, module, epoch, policy, scope ('': it does not watch)
    -- This policy is followed from now on: scores of another are of no use. What it remembers stays
    -- where it is the one that was followed before. Returns 1, or 0 when the epoch is over.
    register('follow', function(c)
        local epoch, policy, scope = take(c), take(c), take(c)
        if not leads(c, epoch) then return 0 end
        call('UNLINK', c.scores, c.ranked, c.touched)
        if scope == '' or call('HGET', c.watch, 'policy') ~= policy then call('UNLINK', c.watch, c.marks) end
        if scope ~= '' then call('HSET', c.watch, 'policy', policy, 'scope', scope) end
        return 1
    end)

    -- ARGV  prefix, module, then per subject: its name, id after which to go on ('': from the first), n
    -- Returns per subject the next n ids of its jobs that have a score, and their metadata, as 'metadata' of
    -- look.lua.
    register('ranked', function(c)
        local answer = {}
        while c.at <= #c.args do
            local subject, after, n = take(c), take(c), take(c)
            local start, ids, rows = subject .. '\t', {}, {}
            for i, member in ipairs(call('ZRANGEBYLEX', c.ranked, '(' .. start .. after,
                '(' .. subject .. '\n', 'LIMIT', 0, n)) do
                ids[i] = string.sub(member, #start + 1)
                rows[i] = call('HEXISTS', c.live, ids[i]) == 1 and metadata(c, ids[i]) or 0 -- 0: it has ended
            end
            answer[#answer + 1] = {ids, rows}
        end
        return answer
    end, {'no-writes'})

    -- ARGV  prefix, module, n
    -- Returns the ids of up to n running jobs, and their metadata.
    register('running', function(c)
        local ids, rows = {}, {}
        for i, member in ipairs(call('ZRANGE', c.leases, 0, take(c) - 1)) do
            ids[i] = string.match(member, '^(.*):%d+$')
            rows[i] = metadata(c, ids[i])
        end
        return {ids, rows}
    end, {'no-writes'})

    -- ARGV  prefix, module, subject...
    -- Returns {the lowest score of a queue's first job ('': none), per subject its counters, its mark
    -- (nothing: none)}.
    register('accounts', function(c)
        local subjects = {}
        while c.at <= #c.args do subjects[#subjects + 1] = take(c) end
        local lowest
        for _, at in ipairs(all_queues(c)) do
            local first = call('LINDEX', at.queue, 0)
            local score = first and call('ZSCORE', c.scores, first)
            if score and (not lowest or tonumber(score) < tonumber(lowest)) then lowest = score end
        end
        return {lowest or '',
            read_many('HMGET', c.own .. 'use:' .. c.q, subjects), read_many('HMGET', c.marks, subjects)}
    end, {'no-writes'})
end
