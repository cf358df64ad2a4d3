"""Mutants of what readers of a stream hear, however often cut, and of whose sessions are whose."""

from tests.mutants.catalogue import Mutant

BOUNDS_TEST = "tests/integration/test_api_bounds.py"
EVENTS_TEST = "tests/integration/test_api_events.py"
CLIENT_TEST = "tests/integration/test_http_client.py"
HTTP_TEST = "tests/integration/test_http_transport.py"
SESSION_TEST = "tests/unit/test_client_session.py"
PENDING_TEST = "tests/unit/test_client_pending.py"
EMIT = "broker/aios_broker/queues/lua/worker/emit.lua"
EVENTS = "kernel_api/aios_kernel_api/events.py"
ROUTER = "kernel_api/aios_kernel_api/router.py"
THREAD = "sdk/aios_sdk/loop_thread.py"
THREAD_TEST = "tests/unit/test_loop_thread.py"
SESSION = "kernel_api/aios_kernel_api/rest/session.py"

SESSION_MUTANTS = (
    Mutant(
        "text is kept with a hole",
        EMIT,
        "if call('STRLEN', key) < at then return end",
        "",
        EVENTS_TEST,
    ),
    Mutant(
        "text is kept for ever",
        "broker/aios_broker/queues/lua/worker/finish.lua",
        "if c.q == 'llm' then drop_texts(c, done) end",
        "",
        EVENTS_TEST,
    ),
    Mutant(
        "the text of a failure goes",
        "broker/aios_broker/queues/lua/worker/finish.lua",
        "if job.status == 'finished' then\n            keys",
        "if true then\n            keys",
        EVENTS_TEST,
    ),
    Mutant(
        "a reader hears what it has heard",
        EVENTS,
        "return Chunk(chunk.id, have, chunk.text[have - chunk.offset :], chunk.part)",
        "return chunk",
        EVENTS_TEST,
    ),
    Mutant(
        "a late reader hears no text",
        EVENTS,
        "yield [*batch, *_unsent(pending.reply, heard), pending.reply]",
        "yield [*batch, pending.reply]",
        EVENTS_TEST,
    ),
    Mutant(
        "a reply overtakes the text before it",
        "broker/aios_broker/client/session.py",
        'if pending.state == "asked":  #',
        "if False:  #",
        SESSION_TEST,
    ),
    Mutant(
        "what came ahead is dropped",
        "broker/aios_broker/client/pending.py",
        "for chunk in (*missing, *ahead):",
        "for chunk in missing:",
        PENDING_TEST,
    ),
    Mutant(
        "an agent submits under any id",
        SESSION,
        "if not kernel.session.ids(caller.owner).owns(syscall.id):",
        "if False:",
        HTTP_TEST,
    ),
    Mutant(
        "a session hears of what is not known to be its agent's",
        SESSION,
        "if known.state is None:",
        "if False:",
        BOUNDS_TEST,
    ),
    Mutant(
        "what is not read is kept without end",
        ROUTER,
        "if box.size_bytes > MOST_WAITING_BYTES:",
        "if False:",
        BOUNDS_TEST,
    ),
    Mutant(
        "one answer holds all that is asked for",
        SESSION,
        "if size_bytes >= MOST_ANSWER_BYTES:",
        "if False:",
        BOUNDS_TEST,
    ),
    Mutant(
        "a stop wakes no stream",
        ROUTER,
        "for news in tuple(self._awaited):",
        "for news in ():",
        EVENTS_TEST,
    ),
    Mutant(
        "anybody's session hears",
        ROUTER,
        "box is not None and box.owner == owner",
        "box is not None",
        HTTP_TEST,
    ),
    Mutant(
        "what a thread leaves that has begun goes on",
        THREAD,
        "            self._task.cancel()",
        "            pass",
        THREAD_TEST,
    ),
    Mutant(
        "a Ctrl-C while a call is being handed over leaves it",
        THREAD,
        "            waiting.leave_soon(loop)\n",
        "            if waiting._task is not None:\n                waiting.leave_soon(loop)\n",
        THREAD_TEST,
    ),
    Mutant(
        "a connection that is lost at once is a fault of ours",
        "broker/aios_broker/http_client.py",
        "if error.name != _ASKED_OF_A_SOCKET:",
        "if True:",
        CLIENT_TEST,
    ),
    Mutant(
        "a fault of ours is a connection that is lost",
        "broker/aios_broker/http_client.py",
        "if error.name != _ASKED_OF_A_SOCKET:",
        "if False:",
        CLIENT_TEST,
    ),
)
