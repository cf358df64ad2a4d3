-- money.lua: what syscalls cost, and budgets: what may be spent in a day or a month.
--
-- A worker tells what its attempt cost so far, in pico-units of the core's currency; a job's record adds
-- up its attempts in these. What it is charged is that sum in nano-units, rounded up: counters, budgets
-- and the journal get the difference whenever it grows, so that it is rounded once for a syscall.
--
-- Key, per module:
--   aios:spent   hash: `day` or `month`, currency, agent or tenant -> the window's name and what it cost
--                in it, nano-units; `swept` -> the day when what is over was dropped last

do
    local WINDOWS = {'day', 'month'} -- of the calendar, in UTC
    local DAY_MS = 86400000
    local PICO_PER_NANO = 1000
    money.NO_BILL = {core = '', currency = '', cost = 0, cached = 0}

    local function spent_key(c) return c.own .. 'spent:' .. c.q end

    -- In nano-units, rounded up: once for a syscall, since sums are kept in pico-units.
    function money.nano_of(pico) return math.ceil(pico / PICO_PER_NANO) end

    local BILLED = {'aios_cost', 'aios_cached', 'aios_base_cost', 'aios_base_cached', 'aios_currency',
        'aios_read_by'}

    -- What this attempt cost so far, as its worker says: core, currency (`-`: no price), cost in
    -- pico-units, and how many cached prompt tokens are among those that it was charged.
    function money.read_bill(packed)
        if packed == '' then return money.NO_BILL end
        local core, currency, cost, cached = string.match(packed, '^(%S+) (%S+) (%d+) (%d+)$')
        return {core = core, currency = currency ~= '-' and currency or '', cost = tonumber(cost),
            cached = tonumber(cached)}
    end

    -- Note in a job's record what it cost, in the same way as what it used (`same`: this attempt was charged
    -- before). What it cost in another currency is charged already, and left out of the job's own sum.
    -- Returns its cost in pico-units, their currency, and what is new: nano-units, and cached tokens.
    function money.charge(c, key, bill, same, prompt)
        local f = redis.call('HMGET', key, unpack(BILLED))
        local had, had_cached = count(f[1]), count(f[2])
        local currency = bill.currency ~= '' and bill.currency or f[5] or '' -- a core without a price costs nothing
        local same_money = not f[5] or f[5] == '' or f[5] == currency
        if not same_money then had = 0 end
        local base, base_cached = had, had_cached
        if same then base, base_cached = same_money and count(f[3]) or 0, count(f[4]) end
        local now = math.max(had, base + bill.cost)
        local now_cached = math.max(had_cached, base_cached + bill.cached)
        local read_by = f[6] or ''
        if prompt > 0 and not string.find(' ' .. read_by .. ' ', ' ' .. bill.core .. ' ', 1, true) then
            read_by = read_by == '' and bill.core or read_by .. ' ' .. bill.core
        end
        redis.call('HSET', key, 'aios_core', bill.core, 'aios_currency', currency, 'aios_cost', text_of(now),
            'aios_base_cost', text_of(base), 'aios_cached', now_cached, 'aios_base_cached', base_cached,
            'aios_read_by', read_by)
        return now, currency, money.nano_of(now) - money.nano_of(had), now_cached - had_cached
    end

    -- The day and the month of this call: their names, and when they end, ms.
    local function windows_of(c)
        if c.windows then return c.windows end
        local iso = iso_of(c.now)
        local year, month = string.match(iso, '^(%d+)-(%d+)')
        year, month = tonumber(year), tonumber(month) + 1
        if month > 12 then year, month = year + 1, 1 end
        c.windows = {
            day = {name = string.sub(iso, 1, 10), ends_ms = (math.floor(c.now / DAY_MS) + 1) * DAY_MS},
            month = {name = string.sub(iso, 1, 7), ends_ms = ms_of_month(year, month)},
        }
        return c.windows
    end

    -- What a subject has spent in a window that lasts, as this call leaves it; and the field it is kept in.
    local function spent_of(c, window, currency, subject)
        local field = window .. ' ' .. currency .. ' ' .. subject
        c.spent = c.spent or {}
        if not c.spent[field] then
            local name, nano = string.match(redis.call('HGET', spent_key(c), field) or '', '(%S+) (%d+)')
            c.spent[field] = name == windows_of(c)[window].name and tonumber(nano) or 0
        end
        return c.spent[field], field
    end

    -- Note what somebody has spent; `money.write` writes it.
    function money.spend(c, who, currency, nano)
        c.spent_in = c.spent_in or {}
        for _, subject in ipairs(who.limited) do
            for _, window in ipairs(WINDOWS) do
                local had, field = spent_of(c, window, currency, subject)
                c.spent[field] = had + nano
                c.spent_in[field] = window
            end
        end
    end

    -- The budget in a currency that an owner of a job has used up: {'quota', limit, subject, spent, most,
    -- ms until its window ends, currency}; nil: none.
    function money.over_budget(c, metadata, currency)
        if not quota.has_quotas(c) then return nil end
        for _, subject in ipairs(quota.owner(c, metadata).limited) do
            for _, window in ipairs(WINDOWS) do
                local name = 'budget_per_' .. window
                local budget = quota.limits_of(c, subject)[name]
                if budget and budget.currency == currency then
                    local spent = spent_of(c, window, currency, subject)
                    if spent >= budget.nano then
                        return {'quota', name, subject, spent, budget.nano,
                            windows_of(c)[window].ends_ms - c.now, currency}
                    end
                end
            end
        end
    end

    -- Once a day: what was spent in windows that are over.
    function money.sweep(c)
        local key, today = spent_key(c), windows_of(c).day.name
        local swept = redis.call('HGET', key, 'swept')
        if swept == today then return end
        local flat, gone = redis.call('HGETALL', key), {}
        for i = 1, #flat, 2 do
            local window, name = string.match(flat[i], '^%a+'), string.match(flat[i + 1], '^%S+')
            if windows_of(c)[window] and name ~= windows_of(c)[window].name then gone[#gone + 1] = flat[i] end
        end
        variadic('HDEL', key, gone)
        if #flat > 0 then redis.call('HSET', key, 'swept', today) end
    end

    -- ARGV  prefix, module, then for each: window, its name, currency, subject, nano-units
    -- What the ledger knows was spent: kept where less is known here, in a window that lasts.
    register('spent', function(c)
        while c.at <= #c.args do
            local window, name, currency, subject, nano = take(c), take(c), take(c), take(c), tonumber(take(c))
            local had, field = spent_of(c, window, currency, subject)
            if name == windows_of(c)[window].name and nano > had then
                call('HSET', spent_key(c), field, name .. ' ' .. text_of(nano))
            end
        end
        return 1
    end)

    -- Write what this call has spent.
    function money.write(c)
        if not c.spent_in then return end
        local rows = {}
        for field, window in pairs(c.spent_in) do
            rows[#rows + 1] = field
            rows[#rows + 1] = windows_of(c)[window].name .. ' ' .. text_of(c.spent[field])
        end
        variadic('HSET', spent_key(c), rows)
        c.spent_in = nil
    end
end
