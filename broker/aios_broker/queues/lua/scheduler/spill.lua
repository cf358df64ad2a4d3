-- spill.lua: drop from Redis the snapshots that were stored in Postgres, unless they have changed.
--
-- ARGV  prefix, module, epoch, then per job: id, sha1 (hex) of what was stored
-- The size stays behind as 0: the job still has a snapshot, which its worker fetches from there.
-- A job that is listed and has no snapshot (a stock tool deleted it) leaves the books.
-- Returns per job 1 dropped, 0 kept; 0 for all when the epoch is over.

local function spill(c, id, sha1)
    local data = redis.call('GET', snapshot_key(c, id))
    if data and redis.sha1hex(data) ~= sha1 then return 0 end
    redis.call('ZREM', c.snapshots, id)
    redis.call('DECRBY', c.snapshot_total, count(redis.call('HGET', c.snapshot_bytes, id)))
    if not data then
        redis.call('HDEL', c.snapshot_bytes, id)
        return 0
    end
    redis.call('UNLINK', snapshot_key(c, id))
    redis.call('HSET', c.snapshot_bytes, id, 0)
    return 1
end

register('spill', function(c)
    local epoch, answer = take(c), {}
    local leading = leads(c, epoch)
    while c.at <= #c.args do
        local id, sha1 = take(c), take(c)
        answer[#answer + 1] = leading and spill(c, id, sha1) or 0
    end
    return answer
end)
