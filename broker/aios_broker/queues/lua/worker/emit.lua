-- emit.lua: push streamed chunks to whoever waits; those of a lost lease are dropped.
--
-- ARGV  prefix, module, n, then per chunk: id, attempt, chunk
-- Returns how many were pushed.

register('emit', function(c)
    local n, ids, members, chunks, pushed = tonumber(take(c)), {}, {}, {}, 0
    for i = 1, n do
        ids[i] = take(c)
        members[i] = ids[i] .. ':' .. take(c)
        chunks[i] = take(c)
    end
    local leases, clients = held_leases(c, members), read_many('HMGET', c.live, ids)
    for i = 1, n do
        if leases[i] then
            reply_to(c, clients[i], chunks[i])
            pushed = pushed + 1
        end
    end
    return pushed
end)
