-- emit.lua: push streamed chunks to whoever waits; those of a lost lease are dropped.
--
-- ARGV  prefix, module, n, n ChunkRows
-- Returns how many were pushed.

register('emit', function(c)
    local chunks, ids, leases = read_leased(c, read.chunk)
    local clients, pushed = read_many('HMGET', c.live, ids), 0
    for i, row in ipairs(chunks) do
        if leases[i] then
            reply_to(c, clients[i], row.chunk)
            pushed = pushed + 1
        end
    end
    return pushed
end)
