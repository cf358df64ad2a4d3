"""The mutants of the A2A door: who sees a task, what is taken for an answer, what is the same."""

from tests.mutants.catalogue import Mutant

DOOR_TEST = "tests/integration/test_a2a.py"
ASK_TEST = "tests/integration/test_a2a_questions.py"
CALLS_TEST = "tests/integration/test_a2a_calls.py"
UNIT_TEST = "tests/unit/test_a2a.py"
FOLLOWING = "kernel_api/aios_kernel_api/a2a/following.py"
MESSAGES = "kernel_api/aios_kernel_api/a2a/messages.py"
METHODS = "kernel_api/aios_kernel_api/a2a/methods.py"
RPC = "kernel_api/aios_kernel_api/a2a/rpc.py"
TASKS = "kernel_api/aios_kernel_api/a2a/tasks.py"

A2A_MUTANTS = (
    Mutant(
        "a2a: `approve all but one` approves all",
        MESSAGES,
        'return {"decision": decision} if not reason else {}',
        'return {"decision": decision}',
        UNIT_TEST,
    ),
    Mutant(
        "a2a: a key that stands twice is taken",
        RPC,
        "raw = read_plain(data)",
        "raw = msgspec.json.decode(data)",
        "tests/integration/test_api_syscalls.py",
    ),
    Mutant(
        "a2a: a list takes more steps of Redis for a task that it reads",
        "kernel_api/aios_kernel_api/a2a/listing.py",
        "(await kernel.find_ended(task.id, owner)).reply",
        "(await kernel.find(task.id, owner)).reply",
        DOOR_TEST,
    ),
    Mutant(
        "a2a: a list reads each task for its size",
        "kernel_api/aios_kernel_api/a2a/listing.py",
        "if state is None and read_bytes + size_bytes <= MOST_PAGE_BYTES:",
        "if read_bytes + size_bytes <= MOST_PAGE_BYTES:",
        DOOR_TEST,
    ),
    Mutant(
        "a2a: a body takes no turn",
        RPC,
        "        async with in_turn(request):\n            raw",
        "        if True:\n            raw",
        "tests/integration/test_api_turns.py",
    ),
    Mutant(
        "a2a: everybody's tasks are shown",
        TASKS,
        "found = await kernel.find(task_id, caller.asks_as)",
        "found = await kernel.find(task_id, None)",
        DOOR_TEST,
    ),
    Mutant(
        "a2a: a message that is sent again is another task",
        METHODS,
        r'from_key(f"a2a\x1f{message.message_id}")',
        "fresh()",
        DOOR_TEST,
    ),
    Mutant(
        "a2a: a question is not looked for",
        FOLLOWING,
        "if may_park and not batch:",
        "if False:",
        ASK_TEST,
    ),
    Mutant(
        "a2a: who subscribes is left at a question",
        FOLLOWING,
        "if self._asks and not past_questions:",
        "if self._asks:",
        ASK_TEST,
    ),
    Mutant(
        "a2a: each piece of an answer begins anew",
        FOLLOWING,
        "append = chunk.part in self._begun",
        "append = False",
        DOOR_TEST,
    ),
    Mutant(
        "a2a: an agent's address is for any token",
        RPC,
        'if named is not None and (named != caller.agent or caller.scope == "operator"):',
        "if False:",
        DOOR_TEST,
    ),
    Mutant(
        "a2a: a page begins with the last task of the one before",
        "kernel_api/aios_kernel_api/a2a/listing.py",
        "age > after",
        "age >= after",
        DOOR_TEST,
    ),
    Mutant(
        "a2a: an error names no part of the message",
        MESSAGES,
        'if head == "body":',
        "if False:",
        CALLS_TEST,
    ),
    Mutant(
        "a2a: no version is version 1.0",
        RPC,
        "if not _VERSION.fullmatch(given):",
        "if given and not _VERSION.fullmatch(given):",
        CALLS_TEST,
    ),
    Mutant(
        "a2a: a page is as large as its artifacts are",
        "kernel_api/aios_kernel_api/a2a/listing.py",
        "(shown and size_bytes > MOST_PAGE_BYTES)",
        "False",
        DOOR_TEST,
    ),
    Mutant(
        "a2a: a list without artifacts reads them",
        "kernel_api/aios_kernel_api/a2a/listing.py",
        "if one is None or (one.is_whole and not params.include_artifacts):",
        "if one is None:",
        DOOR_TEST,
    ),
)
