"""The mutants of the gateway: what is told of a request, and of a client that leaves."""

from tests.mutants.catalogue import Mutant

CHAT_TEST = "tests/integration/test_gateway_chat.py"
FAULT_TEST = "tests/integration/test_gateway_faults.py"
FIELD_TEST = "tests/unit/test_gateway_fields.py"
LABEL_TEST = "tests/unit/test_gateway_labels.py"
BACKGROUND_TEST = "tests/integration/test_gateway_background.py"
RESPONSE_TEST = "tests/integration/test_gateway_responses.py"
RECORDS = "kernel_api/aios_kernel_api/gateway/response_records.py"
RESPONSES = "kernel_api/aios_kernel_api/gateway/responses.py"
STREAMS = "kernel_api/aios_kernel_api/gateway/streams.py"

GATEWAY_MUTANTS = (
    Mutant(
        "gateway: a syscall goes on when its client has left",
        STREAMS,
        "kernel.session.leave(pending, abandon=True)",
        "kernel.session.leave(pending, abandon=False)",
        CHAT_TEST,
    ),
    Mutant(
        "gateway: who leaves takes the syscall of another one along",
        STREAMS,
        "    pending.waiters += 1\n",
        "    pending.waiters = 1\n",
        FAULT_TEST,
    ),
    Mutant(
        "gateway: an error that comes first begins a stream",
        STREAMS,
        "        _succeeded(reply)\n    return first",
        "    return first",
        CHAT_TEST,
    ),
    Mutant(
        "gateway: a stopping process leaves its streams open",
        STREAMS,
        "if leaving.done() or",
        "if",
        FAULT_TEST,
    ),
    Mutant(
        "gateway: the addresses of servers are told",
        STREAMS,
        "error=told_body(reply.error)",
        "error=reply.error",
        FAULT_TEST,
    ),
    Mutant(
        "gateway: unknown fields are dropped in silence",
        "kernel_api/aios_kernel_api/gateway/fields.py",
        '            yield _shown(f"{above}{name}")\n',
        "            continue\n",
        FIELD_TEST,
    ),
    Mutant(
        "gateway: a client's names come into a header as they are",
        "kernel_api/aios_kernel_api/gateway/fields.py",
        'return _ODD.sub("_", path[:64])',
        "return path[:64]",
        FIELD_TEST,
    ),
    Mutant(
        "gateway: a session stands under the parent that it names, wherever that stands",
        "kernel_api/aios_kernel_api/gateway/labels.py",
        "above = root if parent == root else self._places.get((known, parent))",
        "above = root if parent == root else None",
        LABEL_TEST,
    ),
    Mutant(
        "gateway: one agent's sessions are another's",
        "kernel_api/aios_kernel_api/gateway/labels.py",
        'known = f"{whose} {root}"',
        "known = root",
        LABEL_TEST,
    ),
    Mutant(
        "gateway: a nice value is not capped",
        "kernel_api/aios_kernel_api/gateway/limits.py",
        "return max(nice, now.min_nice)",
        "return nice",
        CHAT_TEST,
    ),
    Mutant(
        "gateway: several calls are told though one was asked for",
        "kernel_api/aios_kernel_api/gateway/chat_answer.py",
        "return choice.tool_calls[:1] if one_call else choice.tool_calls",
        "return choice.tool_calls",
        "tests/unit/test_gateway_chat.py",
    ),
    Mutant(
        "gateway: two responses go on with one in the same place",
        "broker/aios_broker/queues/lua/client/responses.lua",
        "== by and 1 or 0",
        "and 1 or 0",
        "tests/integration/test_kept_responses.py",
    ),
    Mutant(
        "gateway: a response without an answer is gone on with",
        RECORDS,
        'if previous.response.status not in ("completed", "incomplete"):',
        "if previous.response.status not in FINAL:",
        BACKGROUND_TEST,
    ),
    Mutant(
        "gateway: the instructions of one response are those of the next",
        RECORDS,
        "            and previous.instructions == instructions\n",
        "",
        RESPONSE_TEST,
    ),
    Mutant(
        "gateway: a response in the background ends with its client",
        RESPONSES,
        "        gateway.kernel.session.let_go(pending)\n",
        "        gateway.kernel.session.abandon(pending)\n",
        BACKGROUND_TEST,
    ),
    Mutant(
        "gateway: one that answers later is not kept",
        RECORDS,
        "return await self.conclude(record, await self._lost(record), now)",
        "return record",
        BACKGROUND_TEST,
    ),
)
