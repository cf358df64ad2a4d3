-- rates.lua: how much may be sent to the account behind a core, over all workers. Most of it are
-- functions that admission calls; the steps of its own are at the end.
--
-- Keys, of all modules together:
--   aios:terms           hash: core -> account, requests and tokens per minute (0: any number), and the
--                        currency of its price (`-`: none), a space between
--   aios:rate:<account>  hash: `r<s>`, `t<s>`, `c<s>` -> requests, tokens, and places that claims took,
--                        by the second of Redis' clock; `until` -> ms until when nothing is sent
--
-- What was counted in a second counts until the 60 seconds that follow it are over: in any 60 seconds
-- there are never more than the limits say. A request takes its tokens beforehand, by estimate, and is
-- set right when what it used is known: only what was estimated too low can go beyond the limit.
--
-- A claim takes a place for one request of each job that it lends, so that no worker takes what cannot
-- be sent. The request uses up the oldest place: the sum of both stays as it was. A place that nobody
-- used is over like all else, after its minute. How many tokens such a job will take is not known yet:
-- as many as the requests of this minute took on average.

do
    local WINDOW_S = 60
    local KEPT_MS = 130000 -- of an account at which nothing happens

    function rates.terms(c, core)
        c.known_terms = c.known_terms or {}
        if c.known_terms[core] == nil then
            local account, requests, tokens, currency = string.match(
                call('HGET', c.terms, core) or '', '^(%S+) (%d+) (%d+) (%S+)$')
            c.known_terms[core] = account and {core = core, account = account, requests = tonumber(requests),
                tokens = tonumber(tokens), currency = currency ~= '-' and currency or nil} or false
        end
        return c.known_terms[core]
    end

    local function is_limited(terms) return terms and (terms.requests > 0 or terms.tokens > 0) end

    local function rate_key(c, account) return c.own .. 'rate:' .. account end

    -- What counts of an account now: sums, and the seconds they are of, oldest first.
    local function state_of(c, account)
        c.rates = c.rates or {}
        if c.rates[account] then return c.rates[account] end
        local now_s = math.floor(c.now / 1000)
        local s = {now_s = now_s, r = 0, t = 0, c = 0, until_ms = 0, at = {}, over = {}, seconds = {}}
        local flat = call('HGETALL', rate_key(c, account))
        for i = 1, #flat, 2 do
            local kind, second = string.match(flat[i], '^([rtc])(%d+)$')
            second = tonumber(second)
            if not kind then
                s.until_ms = tonumber(flat[i + 1])
            elseif second < now_s - WINDOW_S then
                s.over[#s.over + 1] = flat[i]
            else
                if not s.at[second] then
                    s.at[second] = {r = 0, t = 0, c = 0}
                    s.seconds[#s.seconds + 1] = second
                end
                s.at[second][kind] = tonumber(flat[i + 1])
                s[kind] = s[kind] + flat[i + 1]
            end
        end
        table.sort(s.seconds)
        c.rates[account] = s
        return s
    end

    local function add(c, account, kind, second, by)
        local s, key = state_of(c, account), rate_key(c, account)
        if by == 0 then return end
        if not s.at[second] then
            s.at[second] = {r = 0, t = 0, c = 0}
            s.seconds[#s.seconds + 1] = second
            table.sort(s.seconds)
        end
        s.at[second][kind], s[kind] = s.at[second][kind] + by, s[kind] + by
        call('HINCRBY', key, kind .. second, by)
        variadic('HDEL', key, s.over)
        s.over = {}
        call('PEXPIRE', key, math.max(KEPT_MS, s.until_ms - c.now))
    end

    -- When so many of these kinds are over that what is left is at most `most`: ms from now.
    local function wait_ms(c, s, kinds, most)
        local left = 0
        for kind in string.gmatch(kinds, '.') do left = left + s[kind] end
        for _, second in ipairs(s.seconds) do
            if left <= most then break end
            for kind in string.gmatch(kinds, '.') do left = left - s.at[second][kind] end
            if left <= most then return (second + WINDOW_S + 1) * 1000 - c.now end
        end
        return 0
    end

    -- Why a job may not be begun on a core now: {'rate', core, what, used, limit, ms until it may};
    -- nil: it may. What: requests, tokens, or told (its endpoint said when to come again).
    function rates.barrier(c, core)
        local terms = core and rates.terms(c, core)
        if not terms then return nil end
        local s = state_of(c, terms.account)
        if s.until_ms > c.now then return {'rate', core, 'told', 0, 0, s.until_ms - c.now} end
        if terms.requests > 0 and s.r + s.c >= terms.requests then
            return {'rate', core, 'requests', s.r + s.c, terms.requests, wait_ms(c, s, 'rc', terms.requests - 1)}
        end
        if terms.tokens == 0 then return nil end
        local each = s.r > 0 and math.ceil(s.t / s.r) or 0
        if s.t >= terms.tokens or s.c > 0 and s.t + (s.c + 1) * each > terms.tokens then
            local room = s.t >= terms.tokens and terms.tokens - 1 or math.max(0, terms.tokens - each)
            return {'rate', core, 'tokens', s.t, terms.tokens, math.max(1, wait_ms(c, s, 't', room))}
        end
    end

    -- A job is lent to run on a core.
    function rates.enter(c, core)
        local terms = core and rates.terms(c, core)
        if is_limited(terms) then
            add(c, terms.account, 'c', state_of(c, terms.account).now_s, 1)
        end
    end

    -- Requests that are sent use up places, the oldest first.
    local function use_places(c, account, n)
        local s = state_of(c, account)
        for _, second in ipairs({unpack(s.seconds)}) do
            if n == 0 then return end
            local used = math.min(n, s.at[second].c)
            add(c, account, 'c', second, -used)
            n = n - used
        end
    end

    -- ARGV  prefix, module, account, requests and tokens per minute (0: any number), requests, tokens
    -- May so many be sent now? Then they are counted. Tokens beyond the limit count as the limit.
    -- Returns {ms until it may, 0: it may; the second they are counted in; the tokens that are}.
    register('acquire', function(c)
        local account, most_requests, most_tokens = take(c), tonumber(take(c)), tonumber(take(c))
        local requests, tokens = tonumber(take(c)), tonumber(take(c))
        local s = state_of(c, account)
        if s.until_ms > c.now then return {s.until_ms - c.now, 0, 0} end
        local placed = math.min(requests, s.c)
        local wait = 0
        if most_requests > 0 and s.r + s.c - placed + requests > most_requests then
            wait = math.max(1, wait_ms(c, s, 'rc', math.max(0, most_requests - requests + placed)))
        end
        if most_tokens > 0 then
            tokens = math.min(tokens, most_tokens)
            if s.t + tokens > most_tokens then
                wait = math.max(wait, 1, wait_ms(c, s, 't', most_tokens - tokens))
            end
        end
        if wait > 0 then return {wait, 0, 0} end
        use_places(c, account, placed)
        add(c, account, 'r', s.now_s, requests)
        add(c, account, 't', s.now_s, tokens)
        return {0, s.now_s, tokens}
    end)

    -- ARGV  prefix, module, account, the second and the tokens that `acquire` counted, tokens used
    -- Returns 1; 0 when they do not count any more.
    register('set_right', function(c)
        local account, second, counted, used = take(c), tonumber(take(c)), tonumber(take(c)), tonumber(take(c))
        if second < state_of(c, account).now_s - WINDOW_S then return 0 end
        add(c, account, 't', second, used - counted)
        return 1
    end)

    -- ARGV  prefix, module, account, ms
    -- Nothing is sent for so long, by nobody; a longer time that was told before stands. Returns ms.
    register('penalise', function(c)
        local account, ms = take(c), tonumber(take(c))
        local s, key = state_of(c, account), rate_key(c, account)
        s.until_ms = math.max(s.until_ms, c.now + ms)
        call('HSET', key, 'until', text(c, s.until_ms))
        call('PEXPIRE', key, math.max(KEPT_MS, s.until_ms - c.now))
        return s.until_ms - c.now
    end)

    -- ARGV  prefix, module, core, account, requests and tokens per minute, currency of its price or `-`;
    --       an empty account: the core has neither limits nor a price
    register('terms', function(c)
        local core, account = take(c), take(c)
        if account == '' then
            return call('HDEL', c.terms, core)
        end
        return call('HSET', c.terms, core, table.concat({account, take(c), take(c), take(c)}, ' '))
    end)
end
