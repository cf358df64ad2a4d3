-- cancel.lua: end jobs that wait, run, are held or parked; whoever waits hears it at once.
--
-- ARGV  prefix, module, now (ISO), event (cancel | fail), error body (JSON), who asks (`tenant agent`;
--       empty: an operator), id...
-- Returns per job done | ended | unknown.

register('cancel', function(c)
    local iso, event, body, who = take(c), take(c), take(c), take(c)
    return for_each(c, function(id)
        if who ~= '' and not is_of(c, who, call('HGET', job_key(c, id), 'aios_metadata')) then return 'unknown' end
        terminate(c, id, event, event == 'cancel' and 'canceled' or 'failed', body, iso)
    end)
end)
