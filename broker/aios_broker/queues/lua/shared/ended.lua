-- ended.lua: delete the records of jobs that finished, when their time is over.
--
-- To expire by itself costs each key two commands and a look of Redis' own for it, later. Instead each
-- finish notes its batch in a list, in the order of time: a packed {until (s), ended_at, id...}.
-- Finishing (`finish`) and the scheduler (`expire`) delete the batches whose time is over.

local SWEPT_BY_FINISH = 2 -- batches: more than the one that it adds
local SWEPT_BY_EXPIRE = 8 -- some milliseconds, four times a second

-- Note that the jobs of these entries in RQ's registry (score, id, score, id...) finished now.
local function note_ended(at, iso, entries, until_s)
    if #entries == 0 then return end
    local batch = {until_s, iso}
    for i = 2, #entries, 2 do batch[#batch + 1] = entries[i] end
    call('RPUSH', at.ended, cmsgpack.pack(batch))
end

-- Is the record of a job still that of the life which ended at `iso`? A stock tool may have enqueued
-- it again since, or deleted it, and its id may have come again.
local function is_over(c, id, iso)
    if call('HEXISTS', c.live, id) == 1 then return false end
    local found = redis.pcall('HGET', job_key(c, id), 'ended_at')
    return found == iso
end

-- RQ's registry says when a job's time is over, and nearly always knows it: then nothing happened to
-- it since. Where it does not (every `rq info` drops what has expired), its record is asked.
local function drop_batch(c, at, batch)
    local until_s, iso, ids, gone = batch[1], batch[2], {}, {}
    for i = 3, #batch do ids[i - 2] = batch[i] end
    local scores = read_many('ZMSCORE', at.finished, ids)
    for i, id in ipairs(ids) do
        local score = tonumber(scores[i])
        if score == until_s or not score and is_over(c, id, iso) then
            gone[#gone + 1] = job_key(c, id)
            gone[#gone + 1] = results_key(c, id)
        end
    end
    for first = 1, #gone, CHUNK do
        call('UNLINK', unpack(gone, first, math.min(first + CHUNK - 1, #gone)))
    end
end

-- Delete the records whose time is over, of so many batches of a queue at most.
local function sweep_ended(c, at, batches)
    for _ = 1, batches do
        local packed = call('LINDEX', at.ended, 0)
        local batch = packed and cmsgpack.unpack(packed)
        if not batch or batch[1] * 1000 > c.now then return end
        call('LPOP', at.ended)
        drop_batch(c, at, batch)
    end
end
