-- emit.lua: push streamed chunks to whoever waits; those of a lost lease are dropped. What was read must
-- stay true: its record says so (aios_streamed), for who would let it begin anew elsewhere.
--
-- ARGV  prefix, module, n, n ChunkRows
-- Returns how many were pushed.

register('emit', function(c)
    local chunks, ids, leases = read_leased(c, read.chunk)
    local clients, pushed = read_many('HMGET', c.live, ids), 0
    for i, row in ipairs(chunks) do
        if leases[i] then
            reply_to(c, clients[i], row.chunk)
            redis.pcall('HSET', job_key(c, row.id), 'aios_streamed', '1') -- not over a foreign key
            pushed = pushed + 1
        end
    end
    return pushed
end)
