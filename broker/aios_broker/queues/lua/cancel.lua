-- cancel.lua: end jobs that wait, run, are held or parked; whoever waits hears it at once.
--
-- ARGV  prefix, module, now (ISO), event (cancel | fail), error body (JSON), id...
-- Returns per job done | ended | unknown.

register('cancel', function(c)
    local iso, event, body = take(c), take(c), take(c)
    local answer = {}
    while c.at <= #c.args do
        local id = take(c)
        if redis.call('HEXISTS', c.live, id) == 1 then
            terminate(c, id, event, event == 'cancel' and 'canceled' or 'failed', body, iso)
            answer[#answer + 1] = 'done'
        else
            answer[#answer + 1] = redis.call('EXISTS', job_key(c, id)) == 1 and 'ended' or 'unknown'
        end
    end
    clear_queue(c)
    send_replies(c)
    write_journal(c)
    return answer
end)
