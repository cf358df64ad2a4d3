-- needs.lua: what a call of a tool needs, by its arguments and its tool's card: its worker says so before it
-- runs it. What its caller said, or did not say, holds until then and no longer.
--
-- ARGV  prefix, module, a NeedsRow
--
-- The limits are those of the card that it is run by: whatever Redis knew of the tool before (nothing, after a
-- loss), nobody begins above them.
-- Returns 1: its lease holds them; 0: they are not free, and it holds none of them: it is to leave (suspend, with
-- the reason `needs`), and comes back when they are; -1: its lease is gone.

register('needs', function(c)
    local job = read.needs(c)
    local member = job.id .. ':' .. job.attempt
    if not call('ZSCORE', c.leases, member) or is_removed(c, job.id) then return -1 end
    if job.tool ~= '' then admission.follow_card(c, job.tool, job.limits) end
    local known, metadata = unpack(call('HMGET', job_key(c, job.id), 'aios_needs', 'aios_metadata'))
    local said = {id = job.id, needs = known, metadata = metadata}
    if admission.has_taken(c, said, job.needs, member) then return 1 end
    call('HSET', job_key(c, job.id), 'aios_needs', job.needs)
    return admission.exchange(c, said, job.needs, member) and 1 or 0
end)
