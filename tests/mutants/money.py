"""Mutants of what is charged in money, of budgets, and of accounts' limits."""

from tests.mutants.catalogue import Mutant

MONEY = "broker/aios_broker/queues/lua/shared/money.lua"
RATES = "broker/aios_broker/queues/lua/shared/rates.lua"
ADMISSION = "broker/aios_broker/queues/lua/shared/admission.lua"
RUNS = "workers/aios_workers/runtime/runs.py"
COST_TEST = "tests/integration/test_costs.py"
RATE_TEST = "tests/integration/test_rate_limits.py"
BUDGET_TEST = "tests/integration/test_budgets.py"

MONEY_MUTANTS = (
    Mutant(
        "a slice is paid twice",
        MONEY,
        "if same then base, base_cached =",
        "if false then base, base_cached =",
    ),
    Mutant(
        "what another core cost is forgotten",
        MONEY,
        "local base, base_cached = had, had_cached",
        "local base, base_cached = 0, had_cached",
    ),
    Mutant(
        "each attempt is rounded by itself",
        MONEY,
        "money.nano_of(now) - money.nano_of(had)",
        "money.nano_of(now - had)",
    ),
    Mutant(
        "a core without a price takes the cost away",
        MONEY,
        "bill.currency ~= '' and bill.currency or f[5] or ''",
        "bill.currency",
    ),
    Mutant(
        "the prompt is paid by each worker that reads it",
        MONEY,
        "'aios_read_by', read_by)",
        "'aios_read_by', '')",
        COST_TEST,
    ),
    Mutant(
        "a reply forgets what earlier attempts cost",
        RUNS,
        "earlier = lease.cost_pico if",
        "earlier = 0 if",
        COST_TEST,
    ),
    Mutant(
        "cached tokens are paid as others",
        "broker/aios_broker/contract/money.py",
        "cached * pico_per_token(cached_price)",
        "cached * pico_per_token(price.input)",
        "tests/unit/test_money.py",
    ),
    Mutant(
        "what an endpoint counts is paid and what the kernel counts, too",
        RUNS,
        "        if self._bills_requests:\n            return self._billed\n",
        "",
        COST_TEST,
    ),
    Mutant(
        "a budget is never used up",
        MONEY,
        "if spent >= budget.nano then",
        "if false then",
        BUDGET_TEST,
    ),
    Mutant(
        "a budget of yesterday is used up today",
        MONEY,
        "name == windows_of(c)[window].name and tonumber(nano) or 0",
        "tonumber(nano) or 0",
        BUDGET_TEST,
    ),
    Mutant(
        "what has begun is kept from its end",
        ADMISSION,
        "return not job.begun and unpaid(c,",
        "return unpaid(c,",
        BUDGET_TEST,
    ),
    Mutant(
        "what a tenant spends is its agents' alone",
        MONEY,
        "for _, subject in ipairs(who.limited) do",
        "for _, subject in ipairs({who.agent}) do",
        BUDGET_TEST,
    ),
    Mutant(
        "what could run for nothing waits for money",
        ADMISSION,
        "return #found > 0 and found or cores",
        "return cores",
        BUDGET_TEST,
    ),
    Mutant("a minute is too short", RATES, "local WINDOW_S = 60", "local WINDOW_S = 58", RATE_TEST),
    Mutant(
        "each worker counts for itself",
        RATES,
        "        add(c, account, 'r', s.now_s, requests)\n",
        "",
        RATE_TEST,
    ),
    Mutant(
        "tokens are not counted",
        RATES,
        "        add(c, account, 't', s.now_s, tokens)\n",
        "",
        RATE_TEST,
    ),
    Mutant(
        "a claim takes no place",
        RATES,
        "add(c, terms.account, 'c', state_of(c, terms.account).now_s, 1)",
        "",
        RATE_TEST,
    ),
    Mutant(
        "a place is used and kept",
        RATES,
        "add(c, account, 'c', second, -used)",
        "",
        RATE_TEST,
    ),
    Mutant(
        "claims do not look at the account",
        ADMISSION,
        "or rates.barrier(c, limited_core(c, job, cores))",
        "",
        RATE_TEST,
    ),
    Mutant(
        "a shorter pause ends a longer one",
        RATES,
        "s.until_ms = math.max(s.until_ms, c.now + ms)",
        "s.until_ms = c.now + ms",
        RATE_TEST,
    ),
    Mutant(
        "what was used is not set right",
        RATES,
        "        add(c, account, 't', second, used - counted)\n",
        "",
        RATE_TEST,
    ),
)
