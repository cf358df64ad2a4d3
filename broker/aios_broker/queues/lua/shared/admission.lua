-- admission.lua: may a waiting job run, here and now? Whoever lends one asks this, and nothing else
-- decides. At the end: what the scheduler and an operator tell it, and what it tells them.
--
-- What a job needs is in its record (aios_needs): tokens, a space between them.
--   core:x     a worker that serves a core that the name x leads to (routes.lua)
--   tool:y     a place at the tool y, of everybody's, of its tenant's and of its agent's: as many as each has
--              a limit, any number where it has none
--   program:z  the program z of its agent is admitted, and has a place where it has a limit
--   lock:w     the lock w of its tenant: one place
--   model:any  nothing more; it waits for models, and so takes no place of those that do not (see below)
-- Whatever it names, its own program must be admitted, and its agent and tenant be within their
-- quotas, and the account behind its core must have room (rates.lua). A need of another kind is a newer
-- release's: nobody here serves it.
-- The last three are resources: `tool:y`, `tool:tenant y`, `tool:tenant agent y`, `program:tenant agent z`,
-- `lock:tenant w`. Keys, per module:
--   aios:resources  hash: resource -> how many may hold it at once, as an operator has it
--   aios:tool_limits hash: tool -> how many of all, of one tenant's and of one agent's calls may run at once, as its
--                   card has it, a space between; 0: any number. Of two limits the lower one holds
--   aios:holders    zset: resource, tab, id:attempt; all of score 0, so that it is in the order of text
--   aios:owed       hash: resource -> the job that gets the next place: its id, and since when it waits
--   aios:barred     zset: program -> ms until when it is not admitted
--   aios:far        of each queue, string: ms and place of the last look far into the queue that found nothing
--
-- Who holds a resource follows from the leases: an attempt holds what it took until its lease is gone,
-- whoever ended that. An entry of a lease that is gone counts for nothing, and is dropped by whoever
-- comes across it; so no step that ends a job needs to know of any resource, and none can forget it.
--
-- A job that was passed over, has waited for PATIENCE_MS, and that nothing but resources keeps back is
-- owed those that are limited: to everybody else it counts as one more holder of each, and it is lent before
-- all others as soon as all are free. While its own agent or tenant has all places at a tool that it may have,
-- it is owed nothing: nobody else waits for what they wait for; theirs go in the order of the queue. Each resource is owed to one job at a time, and a job is owed all it needs or
-- nothing: no two can wait for each other. The debt is over when it stops waiting, or when something
-- else keeps it back, too: that is found out from its record, each time a debt matters.

--
-- The slots of a state module (memory, storage, access) are shared: one tenant has at most three quarters of them
-- at once, and one agent a half, so that who comes next finds one. What waits for a model has as many places of its
-- own. So are those of the tools, among calls of tools: what asks for none (an echo, a run in a session, which gives
-- its slot back while it waits) counts for nothing. Nobody is owed a share, nor anything else while his is used up. They are held as resources are: `place:tenant`, `place:tenant agent`; `model:` alike.

do
    local SHARED = {memory = true, storage = true, access = true}
    local OF_TENANT, OF_AGENT = 3 / 4, 1 / 2
    local PATIENCE_MS = 5000
    local MOST_OWED = 64        -- resources; the jobs that wait for others are owed them later
    local MISS_MS = 100         -- after a look through jobs that are all barred, until the next
    local FAR_LOOK = 1024       -- how many such a look sees: about 3 ms of Redis' time
    local FAR_TTL_MS = 60000
    local SWEPT_HOLDERS = 1000  -- entries that are compared with the leases each second
    local EXCLUSIVE = 1
    local RESOURCES = {tool = true, program = true, lock = true}
    local NOTHING = {}

    -- Is there any rule but cores and resources, and whose use does a policy watch? Where there is
    -- neither, one command tells.
    function admission.read_rules(c)
        local quotas, counted = c.own .. 'quota:' .. c.q, c.own .. 'counted:' .. c.q
        c.has_rules = call('EXISTS', quotas, counted, c.barred, c.owed, c.watch, c.terms, c.stopped) > 0
        c.stops = c.has_rules and call('EXISTS', c.stopped) == 1
        c.has_terms = c.has_rules and call('EXISTS', c.terms) == 1
        c.quotas = c.has_rules and call('EXISTS', quotas, counted) > 0
        c.programs = c.has_rules and call('EXISTS', c.barred) == 1 and {}
        c.scope = c.has_rules and call('HGET', c.watch, 'scope')
        if not c.has_rules then c.creditors = {} end
    end

    local function has_rules(c)
        if c.has_rules == nil then admission.read_rules(c) end
        return c.has_rules
    end

    -- What a text of needs says.
    local function parsed(c, needs)
        c.parsed = c.parsed or {}
        local found = c.parsed[needs]
        if found then return found end
        found = {cores = {}, resources = {}, strange = false}
        for need in string.gmatch(needs, '%S+') do
            local kind, name = string.match(need, '^(%a+):(.+)$')
            if kind == 'core' then
                found.cores[#found.cores + 1] = name
            elseif RESOURCES[kind] then
                found.resources[#found.resources + 1] = {kind = kind, name = name}
                found.tool = found.tool or kind == 'tool'
            elseif kind == 'model' then
                found.model = true
            else
                found.strange = true
            end
        end
        c.parsed[needs] = found
        return found
    end

    -- A lock is its tenant's, a program its agent's, a tool everybody's.
    local function name_of(c, need, metadata)
        if need.kind == 'tool' then return 'tool:' .. need.name end
        local who = quota.owner(c, metadata)
        return need.kind .. string.match(need.kind == 'lock' and who.tenant or who.agent, ':.*')
            .. ' ' .. need.name
    end

    -- What it takes of the places that its agent and its tenant may have at a tool. They come first: what
    -- keeps it back is another resource only where these are free.
    local function add_own_places(c, job, names)
        for _, need in ipairs(parsed(c, job.needs).resources) do
            if need.kind == 'tool' then
                local who = quota.owner(c, job.metadata)
                for _, owner in ipairs({who.agent, who.tenant}) do
                    names[#names + 1] = 'tool' .. string.match(owner, ':.*') .. ' ' .. need.name
                end
            end
        end
    end

    local function resources_of(c, job)
        if not job.needs then return NOTHING end
        if not job.resources then
            job.resources = {}
            add_own_places(c, job, job.resources)
            for _, need in ipairs(parsed(c, job.needs).resources) do
                job.resources[#job.resources + 1] = name_of(c, need, job.metadata)
            end
        end
        return job.resources
    end

    local function is_own_place(resource)
        return string.find(resource, '^tool:[^ ]+ ') ~= nil or string.find(resource, '^place:') ~= nil
            or string.find(resource, '^model:') ~= nil
    end

    local function holds(c, job, resource)
        for _, name in ipairs(resources_of(c, job)) do
            if name == resource then return true end
        end
        return false
    end

    -- The limits in the card of a tool: of all, of a tenant's, of an agent's calls; nil: any number.
    local function card_limits(c, tool)
        c.cards_read = c.cards_read or {}
        if not c.cards_read[tool] then
            local limits = {}
            for number in string.gmatch(call('HGET', c.tool_limits, tool) or '', '%d+') do
                limits[#limits + 1] = number ~= '0' and tonumber(number)
            end
            c.cards_read[tool] = limits
        end
        return c.cards_read[tool]
    end

    -- What the card of its tool says: of `tool:tenant agent y` the third number, of `tool:y` the first.
    local function card_limit(c, resource)
        local owner, tool = string.match(resource, '^tool:(.-)([^ ]+)$')
        if not tool then return false end
        local _, words = string.gsub(owner, ' ', '')
        return card_limits(c, tool)[1 + words] or false
    end

    local function limit_of(c, resource)
        if string.find(resource, '^lock:') then return EXCLUSIVE end
        c.most = c.most or {}
        if c.most[resource] == nil then
            local set, card = tonumber(call('HGET', c.resources, resource)), card_limit(c, resource)
            c.most[resource] = set and card and math.min(set, card) or set or card or false
        end
        return c.most[resource]
    end

    -- The entries of a resource whose leases last; the others are dropped.
    local function living(c, resource)
        local entries = call('ZRANGEBYLEX', c.holders, '[' .. resource .. '\t', '(' .. resource .. '\n')
        local members, alive, gone = {}, {}, {}
        for i, entry in ipairs(entries) do members[i] = string.sub(entry, #resource + 2) end
        for i, lease in ipairs(held_leases(c, members)) do
            local list = lease and alive or gone
            list[#list + 1] = lease and members[i] or entries[i]
        end
        if not c.only_reads then variadic('ZREM', c.holders, gone) end
        return alive
    end

    -- How many hold a resource, those of this call included: exactly, where it may be `enough` to matter.
    local function holders(c, resource, enough)
        c.held_by = c.held_by or {}
        local seen = c.held_by[resource]
        if not seen then
            seen = {taken = 0, n = call('ZLEXCOUNT', c.holders, '[' .. resource .. '\t',
                '(' .. resource .. '\n')}
            c.held_by[resource] = seen
        end
        if not seen.exact and seen.n + seen.taken >= enough then
            seen.n, seen.exact = #living(c, resource), true
        end
        return seen.n + seen.taken
    end

    -- The slots of the workers of this module; a stock worker has none that are known.
    local function slots_of_module(c)
        if not c.module_slots then
            c.module_slots = 0
            for _, key in ipairs(call('SMEMBERS', c.p .. ':workers:' .. c.q)) do
                c.module_slots = c.module_slots + count(call('HGET', key, 'aios_slots'))
            end
        end
        return c.module_slots
    end

    local function takes_share(c, job)
        return SHARED[c.q] or c.q == 'tool' and job.needs and parsed(c, job.needs).tool
    end

    -- The shares that a job takes of its module: each has a name, and what part of the slots it is.
    local function shares_of(c, job)
        if not job.metadata or not takes_share(c, job) then return NOTHING end
        if not job.shares then
            local who = quota.owner(c, job.metadata)
            local kind = job.needs and parsed(c, job.needs).model and 'model' or 'place'
            job.shares = {{name = kind .. string.match(who.tenant, ':.*'), part = OF_TENANT},
                {name = kind .. string.match(who.agent, ':.*'), part = OF_AGENT}}
        end
        return job.shares
    end

    -- The share that is used up: as of a resource that a job cannot have.
    local function used_share(c, job)
        for _, share in ipairs(shares_of(c, job)) do
            local slots = slots_of_module(c)
            local most = math.max(1, math.floor(slots * share.part))
            local n = slots > 0 and holders(c, share.name, most) or 0
            if n >= most then return {'resource', share.name, n, most, ''} end
        end
    end

    -- Is there anything to be entered when this job is lent?
    function admission.counts(c, job) return job.needs or c.has_rules or SHARED[c.q] end

    local function is_barred(c, program)
        local until_ms = c.programs[program]
        if until_ms == nil then
            until_ms = tonumber(call('ZSCORE', c.barred, program)) or 0
            c.programs[program] = until_ms
        end
        return until_ms > c.now
    end

    -- The program of a job, or one that it needs, that is not admitted: {'program', name, ms}.
    local function barred_program(c, job)
        if not has_rules(c) or not c.programs then return nil end
        for _, name in ipairs({quota.owner(c, job.metadata).program, unpack(resources_of(c, job))}) do
            if string.find(name, '^program:') and is_barred(c, name) then
                return {'program', name, c.programs[name] - c.now}
            end
        end
    end

    local function has_core(cores, core) return string.find(cores, ',' .. core .. ',', 1, true) ~= nil end

    -- Does the core that a job's name leads to, or one of them, stand among these?
    local function leads_here(c, asked, cores)
        if has_core(cores, asked) or not c.routed then return has_core(cores, asked) end
        for _, core in ipairs(routes.leads(c, asked)) do
            if has_core(cores, core) then return true end
        end
        return false
    end

    -- Is it served by this worker, or, where none is named, by any? The queue that it stands in says
    -- whose it is; one in the module's own is whose its need says.
    local function is_served(c, job, cores)
        if not job.needs and not job.core then return true end
        local needs = job.needs and parsed(c, job.needs)
        if needs and needs.strange then return false end
        if job.core then
            if cores then return has_core(cores, job.core) end
            return routes.slots(c, job.core) ~= nil
        end
        for _, core in ipairs(needs.cores) do
            if cores and not leads_here(c, core, cores) then return false end
            if not cores and not routes.is_served(c, core) then return false end
        end
        return true
    end

    -- The core whose limits a job must fit: the one it names, else the first one of the worker's that
    -- has any; nil: none has.
    local function limited_core(c, job, cores)
        if not has_rules(c) or not c.has_terms then return nil end
        if job.core then return job.core end
        if job.needs then
            local core = parsed(c, job.needs).cores[1]
            if core then return core end
        end
        for core in string.gmatch(cores or '', '[^,]+') do
            if rates.terms(c, core) then return core end
        end
    end

    -- The budget that a job's owner has used up and that a core is paid from; nil: none.
    local function unpaid(c, metadata, core)
        local terms = core and rates.terms(c, core)
        return terms and terms.currency and money.over_budget(c, metadata, terms.currency) or nil
    end

    -- What has begun goes on to its end: it is paid for.
    local function over_budget(c, job, cores)
        return not job.begun and unpaid(c, job.metadata, limited_core(c, job, cores)) or nil
    end

    -- Of the cores that a job may go to those that its owner can pay; all, where he can pay none.
    function admission.affordable(c, cores, metadata)
        if not has_rules(c) or not c.has_terms then return cores end
        local found = {}
        for _, core in ipairs(cores) do
            if not unpaid(c, metadata, core) then found[#found + 1] = core end
        end
        return #found > 0 and found or cores
    end

    -- Of a new job: the budget that is used up, where all cores that it may go to are paid from one.
    function admission.unaffordable(c, job)
        if not c.routed or not has_rules(c) or not c.has_terms then return nil end
        local over
        for _, core in ipairs(routes.leads(c, routes.asked(job.needs))) do
            over = unpaid(c, job.metadata, core)
            if not over then return nil end
        end
        return over
    end

    -- Is each of its resources one that it can get at all?
    local function can_be_owed(c, job)
        for _, resource in ipairs(resources_of(c, job)) do
            if limit_of(c, resource) == 0 then return false end
        end
        return #resources_of(c, job) > 0
    end

    -- A job that waits, as far as admission knows it; nil: it does not wait.
    function admission.read_waiting(c, id)
        local f = redis.pcall('HMGET', job_key(c, id), 'status', 'aios_needs', 'aios_metadata', 'aios_ready_ms',
            'aios_tokens', origin_of(c))
        if f.err or f[1] ~= 'queued' then return nil end
        local core = home(c, f[6]).core
        return {id = id, needs = f[2], metadata = f[3], ready_ms = tonumber(f[4]) or c.now, begun = f[5],
            core = core ~= '' and core or nil}
    end

    local function stands_back_only_for_resources(c, job)
        return can_be_owed(c, job) and is_served(c, job) and not barred_program(c, job)
            and not over_budget(c, job) and not rates.barrier(c, limited_core(c, job)) and not used_share(c, job)
            and not quota.barrier(c, job.metadata)
    end

    -- Who is owed what: resource -> the job. What is over is left out.
    local function creditors(c)
        if c.creditors then return c.creditors end
        local flat, jobs = call('HGETALL', c.owed), {}
        c.creditors, c.paid = {}, {}
        for i = 1, #flat, 2 do
            local resource, debt = flat[i], flat[i + 1]
            if jobs[debt] == nil then
                local id, since_ms = string.match(debt, '^(.*) (%d+)$')
                local job = admission.read_waiting(c, id)
                local waits_still = job and job.ready_ms == tonumber(since_ms)
                jobs[debt] = waits_still and stands_back_only_for_resources(c, job) and job or false
            end
            if jobs[debt] and holds(c, jobs[debt], resource) then
                c.creditors[resource] = jobs[debt]
            else
                c.paid[#c.paid + 1] = resource
            end
        end
        return c.creditors
    end

    local function drop_paid(c)
        creditors(c)
        variadic('HDEL', c.owed, c.paid)
    end

    -- The first resource that a job cannot have: {'resource', name, holders, limit, id that it is owed to}.
    -- `freed`: a running job that would stop for it.
    local function shortage(c, job, freed)
        for _, resource in ipairs(resources_of(c, job)) do
            local limit = limit_of(c, resource)
            if limit then
                local creditor = creditors(c)[resource]
                local owed = creditor and creditor.id ~= job.id and 1 or 0
                local back = freed and holds(c, freed, resource) and 1 or 0
                local n = holders(c, resource, limit - owed + back)
                if n - back + owed >= limit then
                    return {'resource', resource, n, limit, owed == 1 and creditor.id or ''}
                end
            end
        end
    end

    -- What keeps a waiting job (id, needs, metadata) from running; nil: nothing does. `cores` of the worker,
    -- a comma around each; nil: cores are not asked for.
    local function barrier(c, job, cores, freed)
        if cores and not is_served(c, job, cores) then return {'core'} end
        return barred_program(c, job) or quota.barrier(c, job.metadata, freed and freed.metadata)
            or over_budget(c, job, cores) or rates.barrier(c, limited_core(c, job, cores))
            or shortage(c, job, freed) or used_share(c, job)
    end

    -- May it run here? `freed`: a running job that would stop for it; what it has counts as free.
    function admission.admits(c, job, cores, freed)
        if not has_rules(c) and not admission.counts(c, job) then return true end
        job.barrier = barrier(c, job, cores, freed)
        if not job.barrier then return true end
        if job.barrier[1] ~= 'core' then c.is_barred = true end
        return false
    end

    -- A claim passed over a job that is not admitted.
    function admission.passed(c, job)
        if job.barrier[1] ~= 'resource' or c.now - job.ready_ms < PATIENCE_MS or not can_be_owed(c, job)
            or is_own_place(job.barrier[2]) or call('HLEN', c.owed) >= MOST_OWED then return end
        local limited = {}
        for _, resource in ipairs(resources_of(c, job)) do
            if limit_of(c, resource) then
                if creditors(c)[resource] then return end
                limited[#limited + 1] = resource
            end
        end
        for _, resource in ipairs(limited) do
            call('HSET', c.owed, resource, job.id .. ' ' .. text(c, job.ready_ms))
            c.creditors[resource] = job
        end
    end

    -- A job is chosen to run, by a worker of these cores.
    function admission.enter(c, job, cores)
        quota.moved(c, job.metadata or nil, 'q', 'r', job.id)
        rates.enter(c, limited_core(c, job, cores))
        for _, share in ipairs(shares_of(c, job)) do
            holders(c, share.name, math.huge)
            c.held_by[share.name].taken = c.held_by[share.name].taken + 1
        end
        for _, resource in ipairs(resources_of(c, job)) do
            holders(c, resource, math.huge)
            c.held_by[resource].taken = c.held_by[resource].taken + 1
            local creditor = creditors(c)[resource]
            if creditor and creditor.id == job.id then
                call('HDEL', c.owed, resource)
                c.creditors[resource] = nil
            end
        end
    end

    -- It has its lease: what it needs is its own while that lasts.
    function admission.keep(c, job, member)
        local entries = {}
        for _, resource in ipairs(resources_of(c, job)) do
            entries[#entries + 1] = 0
            entries[#entries + 1] = resource .. '\t' .. member
        end
        for _, share in ipairs(shares_of(c, job)) do
            entries[#entries + 1] = 0
            entries[#entries + 1] = share.name .. '\t' .. member
        end
        variadic('ZADD', c.holders, entries)
    end

    -- The limits of a tool as its card has them: `tool tenant agent`, 0: none.
    function admission.follow_card(c, tool, limits)
        if (call('HGET', c.tool_limits, tool) or '0 0 0') == limits then return end
        if limits == '0 0 0' then call('HDEL', c.tool_limits, tool) else call('HSET', c.tool_limits, tool, limits) end
    end

    -- Does a running job need what its record says, and hold it, and are they no more than may? (It holds
    -- all or nothing, so one tells. More hold a tool where its limit was not known when they were lent.)
    function admission.has_taken(c, job, needs, member)
        if job.needs ~= needs then return false end
        local resources = resources_of(c, job)
        if resources[1] and not call('ZSCORE', c.holders, resources[1] .. '\t' .. member) then return false end
        for _, resource in ipairs(resources) do
            local limit = limit_of(c, resource)
            if limit and holders(c, resource, limit + 1) > limit then return false end
        end
        return true
    end

    -- What it needs is other than that: give back what it holds, and take the right ones. Returns whether all
    -- were free; where not it holds none of them.
    function admission.exchange(c, job, needs, member)
        local held, right = {}, {id = job.id, needs = needs, metadata = job.metadata}
        for i, resource in ipairs(resources_of(c, job)) do held[i] = resource .. '\t' .. member end
        variadic('ZREM', c.holders, held)
        c.held_by = nil
        if shortage(c, right) then return false end
        admission.keep(c, right, member)
        return true
    end

    -- The ids of the jobs that are owed something, those that have waited longest first.
    function admission.owed(c)
        if not has_rules(c) then return NOTHING end
        drop_paid(c)
        local ids, seen = {}, {}
        for _, job in pairs(creditors(c)) do
            if not seen[job.id] then ids[#ids + 1] = job.id end
            seen[job.id] = job.ready_ms
        end
        table.sort(ids, function(a, b)
            if seen[a] ~= seen[b] then return seen[a] < seen[b] end
            return a < b
        end)
        return ids
    end

    -- Looking through a long queue whose jobs are all barred is dear: once in MISS_MS, and then on from
    -- where the last look ended, so that by and by all of it is seen. Returns where to look and how
    -- far; nil: somebody looked a moment ago. `far`: how far where no job is barred.
    function admission.far_scan(c, at, far)
        if not c.is_barred then return 0, far end
        local missed, place = string.match(call('GET', at.far) or '', '^(%d+) (%d+)$')
        if c.now - count(missed) < MISS_MS then return nil, 0 end
        return count(place), FAR_LOOK
    end

    -- Such a look found nothing, and the next one begins at this place.
    function admission.missed(c, at, place)
        if c.is_barred then call('SET', at.far, text(c, c.now) .. ' ' .. text(c, place), 'PX', FAR_TTL_MS) end
    end

    -- What the scheduler sees to: notes of leases, bars and debts that are over.
    function admission.sweep(c)
        call('ZREMRANGEBYSCORE', c.barred, '-inf', c.now)
        if has_rules(c) then drop_paid(c) end
        local n, first, members, gone = call('ZCARD', c.holders), 0, {}, {}
        if n > SWEPT_HOLDERS then first = math.floor(c.now / 1000) * SWEPT_HOLDERS % n end
        local entries = call('ZRANGE', c.holders, first, first + SWEPT_HOLDERS - 1)
        for i, entry in ipairs(entries) do members[i] = string.match(entry, '\t(.*)$') end
        for i, lease in ipairs(held_leases(c, members)) do
            if not lease then gone[#gone + 1] = entries[i] end
        end
        variadic('ZREM', c.holders, gone)
    end

    -- ARGV  prefix, module, id
    -- Returns what keeps a waiting job from running, cores aside: {'quota', limit, subject, used, limit's
    -- value, ms until it may, -1: unknown}, {'program', program, ms}, {'rate', core, what, used, limit, ms
    -- until it may}, {'resource', name, holders, limit, id that the next place is owed to, id:attempt of
    -- each holder}; nothing: nothing does.
    register('barrier', function(c)
        c.only_reads = true
        local job = admission.read_waiting(c, take(c))
        local found = job and barrier(c, job) or {}
        if found[1] == 'resource' then
            for _, member in ipairs(living(c, found[2])) do found[#found + 1] = member end
        end
        return found
    end, {'no-writes'})

    -- ARGV  prefix, module
    -- Returns per resource that is limited, held or owed: {name, limit (-1: none), id it is owed to or '',
    -- id:attempt of each holder}.
    register('resources', function(c)
        c.only_reads = true
        local names, rows = {}, {}
        local limits = call('HGETALL', c.resources)
        for i = 1, #limits, 2 do names[limits[i]] = true end
        for _, tool in ipairs(call('HKEYS', c.tool_limits)) do
            if limit_of(c, 'tool:' .. tool) then names['tool:' .. tool] = true end
        end
        for _, entry in ipairs(call('ZRANGE', c.holders, 0, -1)) do
            local name = string.match(entry, '^(.*)\t')
            if limit_of(c, name) or not is_own_place(name) then names[name] = true end
        end
        for name in pairs(creditors(c)) do names[name] = true end
        for name in pairs(names) do
            local creditor = creditors(c)[name]
            local limit, alive = limit_of(c, name), living(c, name)
            if limit or creditor or alive[1] then
                rows[#rows + 1] = {name, limit or -1, creditor and creditor.id or '', unpack(alive)}
            end
        end
        return rows
    end, {'no-writes'})

    -- ARGV  prefix, module, epoch, ms, program...
    -- These programs, and no others, are not admitted for so long. Returns 1; 0 when the epoch is over.
    register('bar', function(c)
        local epoch, until_ms, rows = take(c), text(c, c.now + take(c)), {}
        if not leads(c, epoch) then return 0 end
        while c.at <= #c.args do
            rows[#rows + 1] = until_ms
            rows[#rows + 1] = take(c)
        end
        call('UNLINK', c.barred)
        variadic('ZADD', c.barred, rows)
        return 1
    end)
end
