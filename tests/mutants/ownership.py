"""Mutants of what keeps a call its agent's, and tokens out of the queue."""

from tests.mutants.catalogue import QUEUE_TEST, Mutant

OWNERSHIP_TEST = "tests/integration/test_ownership.py"
TRUST_TEST = "tests/integration/test_worker_trust.py"
SUBMIT = "broker/aios_broker/queues/lua/client/submit.lua"
VOUCH = "broker/aios_broker/queues/lua/worker/vouch.lua"

OWNERSHIP_MUTANTS = (
    Mutant(
        "anybody attaches by id",
        "broker/aios_broker/queues/lua/client/attach.lua",
        "if status and not is_of(c, who, metadata) then",
        "if false then",
        QUEUE_TEST,
    ),
    Mutant(
        "anybody cancels by id",
        "broker/aios_broker/queues/lua/operator/cancel.lua",
        "if who ~= '' and not is_of(",
        "if false and not is_of(",
        QUEUE_TEST,
    ),
    Mutant(
        "anybody joins a known id",
        SUBMIT,
        "if quota.owner(c, metadata or nil).agent ~= owner.agent then return {'owned'} end",
        "",
        QUEUE_TEST,
    ),
    Mutant(
        "an owner is a tenant",
        SUBMIT,
        ".agent == 'agent:' .. who",
        ".tenant == 'tenant:' .. string.match(who, '%S+')",
        QUEUE_TEST,
    ),
    Mutant(
        "the door takes any id",
        "broker/aios_broker/client/session.py",
        "if not self._transport.ids(owner).owns(syscall.id):",
        "if False:",
        OWNERSHIP_TEST,
    ),
    Mutant(
        "a session shares what its agents wait for",
        "broker/aios_broker/client/session.py",
        "elif owner not in (None, pending.owner):",
        "elif False:",
        OWNERSHIP_TEST,
    ),
    Mutant(
        "the id of a key has no secret",
        "broker/aios_broker/contract/ids.py",
        '_hashed("\\x1f".join(owner), secret, KEY_BYTES)',
        '_hashed("\\x1f".join(owner), b"", KEY_BYTES)',
        OWNERSHIP_TEST,
    ),
    Mutant(
        "a token is queued",
        "broker/aios_broker/contract/job.py",
        "encode_call(encode_syscall(without_tokens(syscall)))",
        "encode_call(encode_syscall(syscall))",
        "tests/unit/test_job.py",
    ),
    Mutant(
        "a token is not looked at",
        SUBMIT,
        "job.denied = not held[both]",
        "job.denied = false",
        OWNERSHIP_TEST,
    ),
    Mutant(
        "a token holds for ever",
        SUBMIT,
        "if found.expires_at and found.expires_at * 1000 <= c.now then return false end",
        "",
        OWNERSHIP_TEST,
    ),
    Mutant(
        "a token holds for any agent",
        SUBMIT,
        "return is_of(c, (found.tenant or 'default') .. ' ' .. found.agent, metadata)",
        "return true",
        OWNERSHIP_TEST,
    ),
    Mutant(
        "the token of a stock job stays in its record",
        VOUCH,
        "call('HSET', key, 'data', job.data, 'description', job.description)",
        "",
        TRUST_TEST,
    ),
    Mutant(
        "the description of a stock job keeps the token",
        VOUCH,
        ", 'description', job.description)",
        ")",
        TRUST_TEST,
    ),
    Mutant(
        "who has lost a stock job still writes to it",
        VOUCH,
        "if not call('ZSCORE', c.leases, job.id .. ':' .. job.attempt) then return 0 end",
        "",
        TRUST_TEST,
    ),
    Mutant(
        "a stock job is nobody's after its claim",
        VOUCH,
        "call('HSET', key, 'aios_metadata', job.metadata)",
        "",
        TRUST_TEST,
    ),
    Mutant(
        "a stock job of a suspended agent runs",
        VOUCH,
        "if refusal then return refusal end",
        "",
        TRUST_TEST,
    ),
    Mutant(
        "whoever has no token of it hears that an agent is suspended",
        VOUCH,
        "        if not holds_token(c, job.token_digest, job.metadata) then return {'denied'} end\n"
        "        local refusal = quota.is_stopped(c, job.metadata) or quota.refuses_nice(c, job)\n",
        "        local refusal = quota.is_stopped(c, job.metadata) or quota.refuses_nice(c, job)\n"
        "            or not holds_token(c, job.token_digest, job.metadata) and {'denied'}\n",
        TRUST_TEST,
    ),
    Mutant(
        "the effect of an id is anybody's",
        "workers/aios_workers/modules/tables.py",
        'agent_column("agent_id", key=True),  # an id',
        'agent_column("agent_id"),  # an id',
        OWNERSHIP_TEST,
    ),
    Mutant(
        "the id of a note is anybody's",
        "workers/aios_workers/modules/memory/adding.py",
        'note_id("note", *syscall.owner, syscall.id)',
        'note_id("note", syscall.id)',
        OWNERSHIP_TEST,
    ),
)
