-- failures.lua: what jobs that failed, or were cancelled, keep of their bodies, in bytes.
--
-- Their records stay for an hour: somebody will want to look at them. All bodies of a module together
-- have a limit; beyond it the oldest lose theirs, and what was streamed of their answers. A list has
-- `until (s) bytes id` of each, in order, a string the sum.

do

local FAILED_BYTES = 64 * 1024 * 1024
local DROPPED_AT_ONCE = 64   -- by one failure, which else goes without a body itself
local SWEPT_FAILURES = 1000  -- by the scheduler: below a millisecond
-- A call without arguments, which no syscall has: whoever enqueues it again hears that.
local NO_BODY = '["aios_workers.entry.syscall",null,[],{}]'

-- Has a failed job lost its body? Then nobody knows any more what it was.
function failures.is_dropped(data) return data == NO_BODY end

-- A stock tool may have deleted the record, or enqueued it again.
local function drop_body(c, id)
    local key = job_key(c, id)
    if call('HEXISTS', c.live, id) == 1 or call('HEXISTS', key, 'data') == 0 then return end
    call('HSET', key, 'data', NO_BODY)
    call('UNLINK', text_key(c, 'answer', id), text_key(c, 'reasoning', id))
end

-- Take the oldest ones off the list: those whose time is over, and those beyond the limit. Returns the sum.
local function drop_oldest(c, sum, most)
    for _ = 1, most do
        local oldest = call('LINDEX', c.failures, 0)
        if not oldest then break end
        local until_s, bytes, id = string.match(oldest, '^(%d+) (%d+) (.*)$')
        local is_over = until_s * 1000 <= c.now
        if not is_over and sum <= FAILED_BYTES then break end
        call('LPOP', c.failures)
        sum = call('DECRBY', c.failed_bytes, bytes)
        if not is_over then drop_body(c, id) end
    end
    return sum
end

-- A job failed; its record is kept so long from now on.
function failures.note(c, id, ttl_s)
    local bytes = call('HSTRLEN', job_key(c, id), 'data')
    call('RPUSH', c.failures, text_of(math.floor(c.now / 1000) + ttl_s) .. ' ' .. bytes .. ' ' .. id)
    local sum = call('INCRBY', c.failed_bytes, bytes)
    if drop_oldest(c, sum, DROPPED_AT_ONCE) <= FAILED_BYTES then return end
    call('RPOP', c.failures)
    call('DECRBY', c.failed_bytes, bytes)
    drop_body(c, id)
end

function failures.sweep(c)
    drop_oldest(c, count(call('GET', c.failed_bytes)), SWEPT_FAILURES)
end

end
