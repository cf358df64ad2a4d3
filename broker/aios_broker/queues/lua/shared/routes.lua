-- routes.lua: which core a syscall goes to. Most of it are functions that submit, admission and the
-- scheduler's `move` call; the steps of its own are at the end.
--
-- A worker registers the card of its core. The card stays when the worker is gone, so that what is sent
-- there waits; an operator takes it away. Keys, of the one module whose cores have queues of their own:
--   aios:core_cards    hash: name -> CoreCard, JSON
--   aios:core_removed  hash: the same of those that were taken away while something waited for them
--   aios:core_served   hash: name -> ms when a worker last said that it serves it
--   aios:core_workers  hash: `name worker` -> `ms slots`: until when it is known to serve it
--   aios:core_looked   hash: name -> the place in its queue where `move` goes on
--   aios:last_core:<program>  string: the core that keeps what a program's last syscall had read
--
-- A name leads to the core of that name; else to those that have it as an alias; else to those whose
-- model has it. No name leads to the default core and to those of the same model, or, where none is the
-- default, to all that generate. Of several it is the one with the least to do for each of its slots.

do
    local LAST_CORE_MS = 600000 -- what a program's last syscall had read is worth something so long
    local LOYAL = 1             -- ... and this much more to do for each slot
    local GONE_MS = 60000       -- a note of a worker is dropped after so long
    local FIRST_MS = 10000      -- a worker that has registered renews soon
    local MOST_DECODED = 1000

    local decoded, n_decoded = {}, 0 -- cards by their text: they hardly ever change

    local function decode(text_)
        local card = decoded[text_]
        if card then return card end
        if n_decoded >= MOST_DECODED then decoded, n_decoded = {}, 0 end
        local readable, found = pcall(cjson.decode, text_)
        if not readable or type(found) ~= 'table' then found = {} end
        card = {model = found.model, snapshot_model = found.snapshot_model or found.model,
            default = found.default, keeps_kv = found.keeps_kv, generates = found.generates ~= false,
            fallback = type(found.fallback) == 'table' and found.fallback or {}, aliases = {}}
        for _, alias in ipairs(type(found.aliases) == 'table' and found.aliases or {}) do
            card.aliases[alias] = true
        end
        decoded[text_], n_decoded = card, n_decoded + 1
        return card
    end

    local function read_cards(c)
        if c.core_names then return end
        local flat = call('HGETALL', c.cards)
        c.core_names, c.core_cards = {}, {}
        for i = 1, #flat, 2 do
            c.core_names[#c.core_names + 1] = flat[i]
            c.core_cards[flat[i]] = decode(flat[i + 1])
        end
        table.sort(c.core_names)
    end

    function routes.names(c)
        read_cards(c)
        return c.core_names
    end

    function routes.card(c, name)
        read_cards(c)
        return c.core_cards[name]
    end

    -- Its card, of one that was removed, too; nil: not known.
    local function last_card(c, name)
        local card = routes.card(c, name)
        if card then return card end
        local text_ = call('HGET', c.removed, name)
        return text_ and decode(text_) or nil
    end

    -- The model whose snapshots its jobs have; nil: not known.
    function routes.snapshot_model(c, name)
        local card = last_card(c, name)
        return card and card.snapshot_model
    end

    -- The cores of its chain.
    function routes.fallback(c, name)
        local card = last_card(c, name)
        return card and card.fallback or {}
    end

    -- The slots of a core's living workers; nil: none lives.
    function routes.slots(c, name)
        if not c.core_slots then
            c.core_slots = {}
            local flat = call('HGETALL', c.serving)
            for i = 1, #flat, 2 do
                local core = string.match(flat[i], '^%S+')
                local until_ms, slots = string.match(flat[i + 1], '^(%d+) (%d+)$')
                if count(until_ms) > c.now then
                    c.core_slots[core] = (c.core_slots[core] or 0) + count(slots)
                end
            end
        end
        return c.core_slots[name]
    end

    -- How much a core has to do for each of its slots, with what this call has given it.
    local function load_of(c, name)
        c.core_load = c.core_load or {}
        if not c.core_load[name] then
            local at = names(c.p, c.q .. '.' .. name).__index
            c.core_load[name] = call('LLEN', at.queue) + call('ZCARD', at.wip)
        end
        return (c.core_load[name] + (c.core_given[name] or 0)) / math.max(1, routes.slots(c, name) or 1)
    end

    local function default_ones(c)
        local found = {} -- of several (one is a card that nobody took away) the one that lives
        for _, name in ipairs(c.core_names) do
            if c.core_cards[name].default and (not found[1] or not routes.slots(c, found[1])) then
                found[1] = name
            end
        end
        local first = found[1] and c.core_cards[found[1]]
        for _, name in ipairs(c.core_names) do
            local card = c.core_cards[name]
            if not first and card.generates or first and name ~= found[1] and card.model == first.model then
                found[#found + 1] = name
            end
        end
        return found
    end

    -- The cores that a name leads to (nil: none is named); nothing: it is nobody's.
    function routes.leads(c, asked)
        read_cards(c)
        c.leads_to = c.leads_to or {}
        local found = c.leads_to[asked or '']
        if found then return found end
        if not asked then
            found = default_ones(c)
        elseif c.core_cards[asked] then
            found = {asked}
        else
            found = {}
            for _, name in ipairs(c.core_names) do
                if c.core_cards[name].aliases[asked] then found[#found + 1] = name end
            end
            local by_alias = #found > 0
            for _, name in ipairs(by_alias and {} or c.core_names) do
                if c.core_cards[name].model == asked then found[#found + 1] = name end
            end
        end
        c.leads_to[asked or ''] = found
        return found
    end

    function routes.leads_to(c, asked, core)
        for _, name in ipairs(routes.leads(c, asked)) do
            if name == core then return true end
        end
        return false
    end

    function routes.asked(needs)
        return needs and needs ~= '' and string.match(' ' .. needs, ' core:(%S+)') or nil
    end

    -- The core that a program's last syscall went to, where it is one of these; and note the next one.
    local function last_core(c, program, among)
        c.last_cores = c.last_cores or {}
        if c.last_cores[program] == nil then
            c.last_cores[program] = call('GET', c.last_core .. program)
        end
        for _, name in ipairs(among) do
            if name == c.last_cores[program] then return name end
        end
    end

    local function note_last(c, program, name)
        if c.last_cores[program] == name and c.noted == program then return end
        c.last_cores[program], c.noted = name, program
        call('SET', c.last_core .. program, name, 'PX', LAST_CORE_MS)
    end

    -- One of several that have living workers.
    local function choose_core(c, among, metadata)
        local best, keeps = among[1], false
        for _, name in ipairs(among) do
            if load_of(c, name) < load_of(c, best) then best = name end
            keeps = keeps or c.core_cards[name].keeps_kv
        end
        if not keeps or not metadata or metadata == '' then return best end
        local program = quota.owner(c, metadata).program
        local last = last_core(c, program, among)
        if last and load_of(c, last) <= load_of(c, best) + LOYAL then best = last end
        note_last(c, program, best)
        return best
    end

    -- The core that a new job goes to; nil: its name is nobody's, or there is no core at all.
    function routes.pick(c, asked, metadata)
        local found, alive = admission.affordable(c, routes.leads(c, asked), metadata), {}
        c.core_given = c.core_given or {}
        for _, name in ipairs(#found > 1 and found or {}) do
            if routes.slots(c, name) then alive[#alive + 1] = name end
        end
        local name = #alive > 1 and choose_core(c, alive, metadata) or alive[1] or found[1]
        if name then c.core_given[name] = (c.core_given[name] or 0) + 1 end
        return name
    end

    -- Does any of the cores that a name leads to have a living worker?
    function routes.is_served(c, asked)
        for _, name in ipairs(routes.leads(c, asked)) do
            if routes.slots(c, name) then return true end
        end
        return false
    end

    -- The queue that a worker's notes are kept under: that of its first core.
    function routes.own(c, cores)
        local first = c.routed and string.match(cores, '[^,]+')
        return first and names(c.p, c.q .. '.' .. first).__index or home(c)
    end

    -- The queues that a worker of these cores takes from: those of its cores, and the module's own, of
    -- which it takes what it can run. First the one whose first job is to go first, by its score where
    -- both have one, else by how long it has waited: none of them starves behind another.
    function routes.serving(c, cores)
        if not c.routed or cores == '' then return {home(c)} end
        local found, first, base = {}, {}, home(c)
        local function add(at)
            local id = call('LINDEX', at.queue, 0)
            if id then found[#found + 1], first[at] = at, id end
        end
        for core in string.gmatch(cores, '[^,]+') do add(names(c.p, c.q .. '.' .. core).__index) end
        add(base)
        if #found < 2 then return found end
        local since, score = {}, {}
        for _, at in ipairs(found) do
            local f = redis.pcall('HGET', job_key(c, first[at]), 'aios_ready_ms')
            since[at] = type(f) == 'string' and tonumber(f) or 0
            score[at] = tonumber(call('ZSCORE', c.scores, first[at]) or nil)
        end
        local all_scored = true
        for _, at in ipairs(found) do all_scored = all_scored and score[at] ~= nil end
        table.sort(found, function(a, b)
            if all_scored and score[a] ~= score[b] then return score[a] < score[b] end
            if since[a] ~= since[b] then return since[a] < since[b] end
            return a.name < b.name
        end)
        return found
    end

    -- A worker says that it serves these cores, for so long.
    function routes.keep_serving(c, worker, cores, for_ms, slots)
        for core in string.gmatch(cores, '[^,]+') do
            call('HSET', c.served, core, c.now)
            call('HSET', c.serving, core .. ' ' .. worker, text(c, c.now + for_ms) .. ' ' .. slots)
        end
    end

    function routes.register(c, worker, slots, cards)
        for _, card in ipairs(cards) do
            call('HSET', c.cards, card.name, card.json)
            call('HDEL', c.removed, card.name)
            call('SADD', c.queues, c.q .. '.' .. card.name)
            call('SADD', c.p .. ':queues', names(c.p, c.q .. '.' .. card.name).__index.queue)
            routes.keep_serving(c, worker, card.name, FIRST_MS, slots)
        end
    end

    function routes.drop_gone(c)
        local flat = call('HGETALL', c.serving)
        for i = 1, #flat, 2 do
            if count(string.match(flat[i + 1], '^%d+')) < c.now - GONE_MS then call('HDEL', c.serving, flat[i]) end
        end
    end

    -- ARGV  prefix, module
    -- Returns a CoreRow per core that is known.
    register('cores', function(c)
        local rows = {}
        for i, name in ipairs(routes.names(c)) do
            local at = names(c.p, c.q .. '.' .. name).__index
            rows[i] = pack.core{card = call('HGET', c.cards, name), slots = routes.slots(c, name) or -1,
                silent_ms = c.now - count(call('HGET', c.served, name)), waiting = call('LLEN', at.queue),
                running = call('ZCARD', at.wip)}
        end
        return rows
    end, {'no-writes'})

    -- ARGV  prefix, module, a worker's cores (a comma between), id, attempt, name
    -- A worker has read which core a stock producer's job names, which nobody had: its record says so from
    -- now on. Where that leads to none of the worker's it belongs to another one's queue from now on, and
    -- goes there when the worker suspends it.
    -- Returns here, elsewhere, lost (so is its lease), or, of a name that is nobody's, the cores that are known.
    register('address', function(c)
        local cores, id, attempt, name = take(c), take(c), take(c), take(c)
        local job, member = job_key(c, id), id .. ':' .. attempt
        if #routes.leads(c, name) == 0 then return {unpack(routes.names(c))} end
        if not call('ZSCORE', c.leases, member) or call('HEXISTS', job, 'status') == 0 then return 'lost' end
        call('HSETNX', job, 'aios_needs', 'core:' .. name)
        for core in string.gmatch(cores, '[^,]+') do
            if routes.leads_to(c, name, core) then return 'here' end
        end
        local at = home(c, call('HGET', job, 'origin'))
        local target = names(c.p, c.q .. '.' .. routes.pick(c, name)).__index
        call('HSET', job, 'origin', target.name)
        call('ZREM', at.wip, member)
        call('ZADD', target.wip, WIP_SCORE, member)
        return 'elsewhere'
    end)

    -- ARGV  prefix, module, name
    -- Take a core away whose workers are gone; `move` sees to what waits for it. Returns 1; 0: it is not
    -- known; -1: a worker serves it.
    register('remove_core', function(c)
        local name = take(c)
        local card = call('HGET', c.cards, name)
        if not card then return 0 end
        if routes.slots(c, name) then return -1 end
        call('HDEL', c.cards, name)
        call('HDEL', c.served, name)
        call('HSET', c.removed, name, card)
        return 1
    end)
end
