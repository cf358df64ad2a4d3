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
RESULTS = "workers/aios_workers/runtime/results.py"
LARGE_TEST = "tests/integration/test_large_replies.py"
VERDICTS_TEST = "tests/unit/test_verdicts.py"

STALL_MUTANTS = (
    Mutant(
        "what takes longer than a transaction may begins anew until its deadline",
        "broker/aios_broker/postgres/store.py",
        "min(2 * limit_s, TRANSACTION_TIMEOUT_S)",
        "limit_s",
        STALLS_TEST,
    ),
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
        "is_long=len(query) > LONG_QUERY",
        "is_long=False",
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
    Mutant(
        "large replies leave all in one step",
        RESULTS,
        "if sum(map(_size_bytes, entries)) <= STEP_BYTES:",
        "if True:",
        LARGE_TEST,
    ),
    Mutant(
        "small results wait for the large ones before them",
        RESULTS,
        "                size_bytes -= _size_bytes(entry)\n                continue\n",
        "                break\n",
        LARGE_TEST,
    ),
    Mutant(
        "large replies that wait to leave hold no slot",
        "workers/aios_workers/runtime/loop.py",
        " - self._leases.in_slots - self._outbox.left)",
        " - self._leases.in_slots)",
        LARGE_TEST,
    ),
    Mutant(
        "redis keeps a long reply once more for RQ's tools",
        "broker/aios_broker/queues/records.py",
        "if not end.lease.trusted or len(end.reply) <= RQ_RESULT_BYTES:",
        "if True:",
        LARGE_TEST,
    ),
    Mutant(
        "long lists of a tenant go all at once",
        "workers/aios_workers/modules/memory/reading.py",
        "is_long = asked.body.limit > LONG_PAGE or",
        "is_long = False or",
        STALLS_TEST,
    ),
    Mutant(
        "a slot waits as long as its form's turn takes",
        "workers/aios_workers/llm/verdicts.py",
        "timeout=patience_s)",
        "timeout=None)",
        VERDICTS_TEST + "::test_what_has_begun_is_found_out_for_whoever_comes_back",
    ),
    Mutant(
        "what was begun of a form is given up with its slot",
        "workers/aios_workers/llm/verdicts.py",
        "if not search.asking and not search.has_begun:",
        "if not search.asking:",
        VERDICTS_TEST,
    ),
    Mutant(
        "whoever gave up its slot keeps its turn",
        "workers/aios_workers/llm/verdicts.py",
        "if not search.asking and not search.has_begun:",
        "if False:",
        VERDICTS_TEST,
    ),
    Mutant(
        "a chat holds its slot until its form is known",
        "workers/aios_workers/llm/handler.py",
        "            patience_s=self._patience_s,\n",
        "",
        VERDICTS_TEST,
    ),
    Mutant(
        "an answer holds its slot while it is looked at",
        "workers/aios_workers/llm/finished.py",
        "                    on_wait()\n",
        "                    pass\n",
        VERDICTS_TEST,
    ),
    Mutant(
        "forms are compiled in the worker's loop",
        "workers/aios_workers/llm/constraint.py",
        "return await asyncio.to_thread(self.start, constraint, output_ids, narrow=narrow)",
        "return self.start(constraint, output_ids, narrow=narrow)",
        VERDICTS_TEST,
    ),
    Mutant(
        "the webhook believes that what is global is of the internet",
        "workers/aios_workers/approvals/webhook.py",
        "not all(map(is_public, known))",
        "not all(each.is_global for each in known)",
        "tests/integration/test_approval_webhook.py",
    ),
    Mutant(
        "calls of tools by one tenant take all slots",
        ADMISSION,
        "SHARED[c.q] or c.q == 'tool' and job.needs and parsed(c, job.needs).tool",
        "SHARED[c.q]",
        SHARES_TEST,
    ),
    Mutant(
        "large work of one tenant goes before all others'",
        "kernel_api/aios_kernel_api/large_work.py",
        "        await self._turn.aclose()\n",
        "        if self._since_s is not None:\n            return\n",
        "tests/unit/test_large_work.py",
    ),
    Mutant(
        "a small request waits for large work",
        "kernel_api/aios_kernel_api/large_work.py",
        "        if self._size_bytes <= SMALL_BYTES:\n",
        "        if self._size_bytes < 0:\n",
        "tests/unit/test_large_work.py",
    ),
    Mutant(
        "what is less than a piece never waits, however often it comes",
        "kernel_api/aios_kernel_api/large_work.py",
        "return self._done_bytes[tenant] <= PIECE_BYTES",
        "return size_bytes <= PIECE_BYTES",
        "tests/unit/test_large_work.py",
    ),
    Mutant(
        "what is refused does not rest",
        "kernel_api/aios_kernel_api/large_work.py",
        "            try:\n                yield progress\n"
        "            finally:  # what was refused has taken as long\n"
        "                await progress.rest()\n",
        "            yield progress\n            await progress.rest()\n",
        "tests/unit/test_large_work.py",
    ),
    Mutant(
        "values weigh nothing",
        "kernel_api/aios_kernel_api/large_work.py",
        "VALUE_BYTES * sum(",
        "0 * sum(",
        "tests/unit/test_large_work.py",
    ),
    Mutant(
        "large messages are read without a pause",
        "broker/aios_broker/client/redis_transport.py",
        "            await asyncio.sleep(0)\n",
        "            pass\n",
        "tests/unit/test_large_work.py",
    ),
    Mutant(
        "a large list is published at once",
        "kernel_api/aios_kernel_api/rest/syscalls.py",
        "if not batches or size_bytes > PIECE_BYTES:",
        "if not batches:",
        "tests/integration/test_api_bounds.py",
    ),
    Mutant(
        "connections that ask nothing keep their places",
        "kernel_api/aios_kernel_api/server.py",
        "len(self.connections) >= most and self.waiting.drop_one()",
        "False",
        "tests/integration/test_api_border.py",
    ),
)
