-- emit.lua: push streamed chunks to whoever waits; those of a lost lease are dropped. What was read must
-- stay true: its record says so (aios_streamed), for who would let it begin anew elsewhere.
--
-- The text is kept, too, in strings of four bytes a character (`answer:<id>`, `reasoning:<id>`): whoever
-- comes later, or has lost a message, reads there what came before. It never has a hole: what would stand
-- behind one is left out. When a job finishes its reply holds the text, and these go.
--
-- ARGV  prefix, module, n, n ChunkRows
-- Returns how many were pushed.

local function keep(c, row)
    local key, at = text_key(c, row.part, row.id), 4 * tonumber(row.offset)
    if call('STRLEN', key) < at then return end
    call('SETRANGE', key, at, row.text)
    call('PEXPIRE', key, TEXT_TTL_MS)
end

register('emit', function(c)
    local chunks, ids, leases = read_leased(c, read.chunk)
    local clients, pushed = read_many('HMGET', c.live, ids), 0
    for i, row in ipairs(chunks) do
        if leases[i] then
            reply_to(c, clients[i], row.chunk)
            local key = job_key(c, row.id)
            if redis.pcall('HSET', key, 'aios_streamed', '1') == 1 -- not over a foreign key
                and call('HEXISTS', key, 'status') == 0 then
                call('UNLINK', key) -- a stock tool deleted it
            end
            keep(c, row)
            pushed = pushed + 1
        end
    end
    return pushed
end)
