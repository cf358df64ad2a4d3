-- cancel.lua: end jobs that wait, run, are held or parked; whoever waits hears it at once.
--
-- ARGV  prefix, module, now (ISO), event (cancel | fail), error body (JSON), id...
-- Returns per job done | ended | unknown.

register('cancel', function(c)
    local iso, event, body = take(c), take(c), take(c)
    return for_each(c, function(id)
        terminate(c, id, event, event == 'cancel' and 'canceled' or 'failed', body, iso)
    end)
end)
