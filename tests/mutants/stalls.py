"""Mutants of what keeps one agent from stalling the others."""

from tests.mutants.catalogue import Mutant

PLACES = "broker/aios_broker/places.py"
ADMISSION = "broker/aios_broker/queues/lua/shared/admission.lua"
INDEXING = "workers/aios_workers/search/indexing.py"
REQUESTS = "broker/aios_broker/access/requests.py"
PLACES_TEST = "tests/unit/test_places.py"
SHARES_TEST = "tests/integration/test_shares.py"
STALLS_TEST = "tests/integration/test_stalls.py"
COMPARING_TEST = "tests/unit/test_comparing.py"
SEARCH_TEST = "tests/integration/test_search.py"
APPROVALS_TEST = "tests/integration/test_approvals.py"

REFUSALS = "workers/aios_workers/modules/refusals.py"
REFUSALS_TEST = "tests/integration/test_refusals.py"
FAIR_TEST = "tests/unit/test_fair_queueing.py"

STALL_MUTANTS = (
    Mutant(
        "who comes back has saved up all that it did not use",
        "broker/aios_broker/fair_queueing.py",
        "max(self._ends.get(name, 0.0), self._now)",
        "self._ends.get(name, 0.0)",
        FAIR_TEST,
    ),
    Mutant(
        "who comes waits for one turn of each",
        "broker/aios_broker/fair_queueing.py",
        "self._now += cost / len(self._waiting)",
        "self._now = self._ends[name]",
        FAIR_TEST,
    ),
    Mutant(
        "names that come one after another starve who waits",
        "broker/aios_broker/fair_queueing.py",
        "        self._now += cost / len(self._waiting)\n",
        "",
        FAIR_TEST,
    ),
    Mutant(
        "a turn costs nothing",
        "broker/aios_broker/fair_queueing.py",
        "        self._ends[name] += cost\n",
        "",
        FAIR_TEST,
    ),
    Mutant(
        "agents of a tenant take no turns at a model",
        "broker/aios_broker/fair_queueing.py",
        "        self._agents[holder.tenant].serve(holder.agent, cost)\n",
        "",
        FAIR_TEST,
    ),
    Mutant(
        "the embedding model takes texts in the order of their coming",
        "workers/aios_workers/search/embedder.py",
        "first = oldest[self._turns.next(costs)]",
        "first = live[0]",
        "tests/integration/test_embeddings.py",
    ),
    Mutant(
        "a tenant has its next turn before others have theirs",
        PLACES,
        "            self._tenants.move_to_end(tenant)\n",
        "",
        PLACES_TEST,
    ),
    Mutant(
        "agents of a tenant have no turns",
        PLACES,
        "            agents.move_to_end(holder)\n",
        "",
        PLACES_TEST,
    ),
    Mutant(
        "one agent has all places of its tenant",
        PLACES,
        "            and self._by_agent[holder] < self.shares.of_agent\n",
        "",
        PLACES_TEST,
    ),
    Mutant(
        "who comes goes before those who wait",
        PLACES,
        "if self._is_free_for(holder) and not self._has_next():",
        "if self.held < self.shares.places:",
        PLACES_TEST,
    ),
    Mutant(
        "a place that was given to one who is gone is lost",
        PLACES,
        "            if turn.done() and not turn.cancelled():  # it had just been given the place\n"
        "                self._free(holder)\n",
        "",
        PLACES_TEST,
    ),
    Mutant(
        "a tenant has all slots of a module",
        ADMISSION,
        "local OF_TENANT, OF_AGENT = 3 / 4, 1 / 2",
        "local OF_TENANT, OF_AGENT = 1, 1 / 2",
        SHARES_TEST,
    ),
    Mutant(
        "what a claim lends beside it does not count",
        ADMISSION,
        "            c.held_by[share.name].taken = c.held_by[share.name].taken + 1\n",
        "",
        SHARES_TEST,
    ),
    Mutant(
        "calls that wait for a model take the places of those that do not",
        ADMISSION,
        "parsed(c, job.needs).model and 'model' or 'place'",
        "parsed(c, job.needs).model and 'place' or 'place'",
        SHARES_TEST,
    ),
    Mutant(
        "a call that waits for a model keeps its slot",
        "workers/aios_workers/modules/state_handler.py",
        "            run.step_aside()  # it waits for a model\n",
        "            pass\n",
        STALLS_TEST,
    ),
    Mutant(
        "connections are given to whoever comes",
        "broker/aios_broker/postgres/store.py",
        "            self.places.one(agent.holder),\n",
        "",
        STALLS_TEST,
    ),
    Mutant(
        "long texts are compared in the worker's own loop",
        "broker/aios_broker/comparing.py",
        "<= SHORT_LINES:",
        "<= 1_000_000:",
        COMPARING_TEST,
    ),
    Mutant(
        "a batch of the index goes by who wrote first",
        INDEXING,
        "ORDER BY place, lot LIMIT {BATCH}",
        "ORDER BY tenant_id, place LIMIT {BATCH}",
        SEARCH_TEST,
    ),
    Mutant(
        "agents of a tenant take no turns in the index",
        INDEXING,
        "row_number() OVER (PARTITION BY tenant_id ORDER BY turn, lot) AS place",
        "row_number() OVER (PARTITION BY tenant_id ORDER BY lot, turn) AS place",
        SEARCH_TEST,
    ),
    Mutant(
        "a search does not say what it lacks",
        "workers/aios_workers/search/ranking.py",
        "        found += int((await only_row(cursor)).rows)\n",
        "",
        SEARCH_TEST,
    ),
    Mutant(
        "requests are listed by age alone",
        REQUESTS,
        "row_number() OVER (ORDER BY nth, asked_at, id) AS place",
        "row_number() OVER (ORDER BY asked_at, id) AS place",
        APPROVALS_TEST,
    ),
    Mutant(
        "validation: whatever a schema is, it is quick work",
        "workers/aios_workers/llm/validation.py",
        "if len(schema) * max(len(text), _LEAST_TEXT) > MOST_QUICK:",
        "if False:",
        "tests/unit/test_finished.py",
    ),
    Mutant(
        "a short query is with the model beside a long text",
        "workers/aios_workers/search/embedder.py",
        "BATCH_CHARACTERS = 512",
        "BATCH_CHARACTERS = 2_048",
        "tests/integration/test_embeddings.py",
    ),
    Mutant(
        "long searches of a tenant go all at once",
        "workers/aios_workers/modules/services.py",
        "if len(query) <= LONG_QUERY:",
        "if True:",
        STALLS_TEST,
    ),
    Mutant(
        "an index step writes nothing before it has done all",
        INDEXING,
        "        if time.monotonic() > until_s:\n            break\n",
        "",
        SEARCH_TEST,
    ),
    Mutant(
        "refused calls have lines without an end",
        REFUSALS,
        "if self._lines[holder] >= OF_AGENT or self._lines[tenant] >= OF_TENANT:",
        "if False:",
        REFUSALS_TEST,
    ),
    Mutant(
        "refused calls that are left out are not told",
        REFUSALS,
        "            self._left_out += left_out  # they are told of the next time\n",
        "",
        REFUSALS_TEST,
    ),
    Mutant(
        "versions of notes that are pushed out are counted for ever",
        "migrations/schema/limits.sql",
        "greatest(0, n.old_bytes - gone.bytes)",
        "n.old_bytes",
        "tests/integration/test_object_limits.py",
    ),
    Mutant(
        "old versions of notes are not counted",
        "migrations/schema/limits.sql",
        "NEW.old_bytes := OLD.old_bytes + aios_note_bytes(",
        "NEW.old_bytes := 0 * aios_note_bytes(",
        "tests/integration/test_object_limits.py",
    ),
)
