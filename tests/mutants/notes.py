"""The mutants of notes that are added, taken out and brought back, and of a query's rules."""

from tests.mutants.catalogue import Mutant

MEMORY = "workers/aios_workers/modules/memory"
SEARCH = "workers/aios_workers/search"
DEDUPE_TEST = "tests/integration/test_memory_dedupe.py"
RECORDS_TEST = "tests/integration/test_memory_records.py"
RULES_TEST = "tests/integration/test_search_rules.py"

NOTE_MUTANTS = (
    Mutant(
        "notes: two that add the same at once do not wait for each other",
        f"{MEMORY}/adding.py",
        "    if not asked.body.dedupe:\n        return ()",
        "    if asked.body.dedupe:\n        return ()",
        f"{DEDUPE_TEST}::test_many_at_once_make_one",
    ),
    Mutant(
        "notes: a turn of a log is the same note",
        f"{MEMORY}/adding.py",
        "AND n.content = %(content)s AND n.turn IS NULL AND",
        "AND n.content = %(content)s AND",
        f"{DEDUPE_TEST}::test_what_is_not_there_is_not_found",
    ),
    Mutant(
        "notes: the same one is gone before the new one would be",
        f"{MEMORY}/adding.py",
        "greatest(n.expires_at, clock_timestamp()",
        "least(n.expires_at, clock_timestamp()",
        f"{DEDUPE_TEST}::test_it_lives_as_long_as_the_new_one_would",
    ),
    Mutant(
        "notes: a turn may be said before the last one",
        f"{MEMORY}/adding.py",
        "if at is not None and at < last.at:",
        "if False:",
        f"{RECORDS_TEST}::test_a_turn_has_its_own_time",
    ),
    Mutant(
        "notes: two that restore the same do not wait for each other",
        f"{MEMORY}/records.py",
        'return await run_once(asked, _restore, f"restore {asked.agent.id}")',
        "return await run_once(asked, _restore)",
        f"{RECORDS_TEST}::test_two_that_restore_the_same_at_once_add_it_once",
    ),
    Mutant(
        "notes: a turn takes the place of another one",
        f"{MEMORY}/records.py",
        "is_free = before == last or not await self._is_taken(work, (program, before + 1))",
        "is_free = True",
        f"{RECORDS_TEST}::test_a_turn_whose_place_another_one_has_begins_a_conversation",
    ),
    Mutant(
        "notes: an export ends with its first page",
        "broker/aios_broker/client/notes_file.py",
        "        if not page.more:\n            return\n",
        "        return\n",
        f"{RECORDS_TEST}::test_a_file_holds_all_in_pages_and_comes_back_in_batches",
    ),
    Mutant(
        "rules: what is near in meaning need not keep them",
        f"{SEARCH}/ranking.py",
        "    where += wanted.only.sql\n",
        "",
        f"{RULES_TEST}::test_rules_bind_every_mode",
    ),
    Mutant(
        "rules: a turn beside a hit need not keep them",
        f"{SEARCH}/ranking.py",
        "({scope.condition}{wanted.only.sql}) ",
        "({scope.condition}) ",
        f"{RULES_TEST}::test_rules_bind_what_is_shared_and_the_turns_beside_a_hit",
    ),
)
