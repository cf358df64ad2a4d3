"""Mutants of whose turn it is, of default limits, and of the kill switch."""

from tests.mutants.catalogue import Mutant

TURNS = "broker/aios_broker/scheduler/turns.py"
TURN_ORDER = "broker/aios_broker/scheduler/turn_order.py"
TURNS_LUA = "broker/aios_broker/queues/lua/scheduler/turns.lua"
QUOTA = "broker/aios_broker/queues/lua/shared/quota.lua"
SUBMIT = "broker/aios_broker/queues/lua/client/submit.lua"
LIMITS = "migrations/schema/limits.sql"
TURNS_TEST = "tests/unit/test_turns.py"
QUEUE_TURNS_TEST = "tests/integration/test_turns.py"
DEFAULTS_TEST = "tests/integration/test_default_limits.py"
STOP_TEST = "tests/integration/test_suspended_agents.py"
OBJECTS_TEST = "tests/integration/test_object_limits.py"

LIMIT_MUTANTS = (
    Mutant(
        "turns: whoever has had one is next again",
        TURNS,
        "            member.start += turn.width\n",
        "",
        TURNS_TEST,
    ),
    Mutant(
        "turns: what is read backwards stands behind the rest",
        TURNS,
        ".jobs.appendleft(turn)",
        ".jobs.append(turn)",
        TURNS_TEST,
    ),
    Mutant(
        "turns: who is read backwards came last",
        TURNS,
        "self._enter(turn, self._oldest)",
        "self._enter(turn, -self._oldest)",
        TURNS_TEST,
    ),
    Mutant(
        "turns: a program that comes alone is still among others",
        SUBMIT,
        "if changes and call('EXISTS', c.live) == 0 then flow = '' end",
        "if false then flow = '' end",
        QUEUE_TURNS_TEST,
    ),
    Mutant(
        "turns: a wide job is one",
        TURNS,
        "            member.start += turn.width\n",
        "            member.start += 1\n",
        TURNS_TEST,
    ),
    Mutant(
        "turns: what is planned does not count",
        TURNS,
        "(start + turn.width, came, member))",
        "(start, came, member))",
        TURNS_TEST,
    ),
    Mutant(
        "turns: who was away has saved up",
        TURNS,
        "max(member.start, group.now), came",
        "member.start, came",
        TURNS_TEST,
    ),
    Mutant(
        "turns: agents do not matter",
        TURNS,
        "path = (metadata.tenant, metadata.agent, metadata.tree)",
        'path = (metadata.tenant, "", metadata.tree)',
        QUEUE_TURNS_TEST,
    ),
    Mutant(
        "turns: those that were at the head are never done",
        TURN_ORDER,
        "                self._turns.had_turn(job_id)\n",
        "                pass\n",
        QUEUE_TURNS_TEST,
    ),
    Mutant(
        "turns: a second program is not noted",
        SUBMIT,
        "            flow = SEVERAL\n",
        "",
        QUEUE_TURNS_TEST,
    ),
    Mutant(
        "turns: what a program had before it was alone no more is read",
        TURN_ORDER,
        "            self._last_alone = ends\n",
        "",
        QUEUE_TURNS_TEST,
    ),
    Mutant(
        "turns: it is not said who is the last of a program that is alone",
        TURNS_LUA,
        "return call('LINDEX', c.queue, -1) or '' end",
        "return '' end",
        QUEUE_TURNS_TEST,
    ),
    Mutant(
        "turns: what comes to the head unread is nobody's",
        TURN_ORDER,
        "            self._turns.add_first(turn)\n",
        "            pass\n",
        QUEUE_TURNS_TEST,
    ),
    Mutant(
        "turns: what comes to the head unread goes behind the rest of its program",
        TURN_ORDER,
        "self._turns.add_first(turn)",
        "self._turns.add(turn)",
        QUEUE_TURNS_TEST,
    ),
    Mutant(
        "turns: the first of a program stand the other way round",
        TURNS,
        "            program.num_first += 1\n",
        "",
        TURNS_TEST,
    ),
    Mutant(
        "turns: a first one that has had its turn counts on",
        TURNS,
        "group.num_first -= place < group.num_first",
        "group.num_first -= 0",
        TURNS_TEST,
    ),
    Mutant(
        "turns: who came back to the head waits for a turn",
        TURN_ORDER,
        "head.index(self._placed[0]) if self._placed else 0",
        "0",
        QUEUE_TURNS_TEST,
    ),
    Mutant(
        "turns: a tick takes in all of a burst",
        TURN_ORDER,
        "len(self._turns) + NEW_AT_ONCE",
        "len(fresh) + len(self._turns)",
        QUEUE_TURNS_TEST,
    ),
    Mutant(
        "turns: nobody is seen before one that has come back",
        TURN_ORDER,
        "if not self._is_read:\n            return len(ids)",
        "if True:\n            return len(ids)",
        QUEUE_TURNS_TEST,
    ),
    Mutant(
        "turns: of a burst the newest is taken in first",
        TURN_ORDER,
        "part = fresh[taken : taken + PIECE]",
        "part = fresh[len(fresh) - taken - PIECE :]",
        QUEUE_TURNS_TEST,
    ),
    Mutant(
        "turns: what does not join on is taken for older",
        TURN_ORDER,
        "if self._turns and not known:",
        "if False:",
        QUEUE_TURNS_TEST,
    ),
    Mutant(
        "limits: anybody may go before others",
        QUOTA,
        "if nice < least then return {'nice', who.agent, nice, least} end",
        "",
        DEFAULTS_TEST,
    ),
    Mutant(
        "limits: an agent has no share",
        QUOTA,
        "if not most and (c.max_waiting or 0) >= SHARED_FROM then",
        "if false then",
        DEFAULTS_TEST,
    ),
    Mutant(
        "limits: until it is counted a queue is anybody's",
        SUBMIT,
        "not quota.has_quotas(c) and not quota.is_roomy(limit, waiting + 1)",
        "false",
        DEFAULTS_TEST,
    ),
    Mutant(
        "limits: unread replies do not matter",
        SUBMIT,
        "if replies >= most then return",
        "if false then return",
        DEFAULTS_TEST,
    ),
    Mutant(
        "limits: slot time of one answer alone",
        QUOTA,
        "(now_ms - had_ms) * who.width",
        "(now_ms - had_ms)",
        DEFAULTS_TEST,
    ),
    Mutant(
        "stop: what is asked is taken",
        QUOTA,
        "if c.stopped_known[subject] then return {'stopped', subject} end",
        "",
        STOP_TEST,
    ),
    Mutant(
        "stop: a tenant's agents go on",
        "broker/aios_broker/queues/lua/operator/stop.lua",
        "wanted[who.agent] or wanted[who.tenant] or",
        "wanted[who.agent] or",
        STOP_TEST,
    ),
    Mutant(
        "limits: what is met is passed",
        LIMITS,
        "IF there > most THEN",
        "IF there > most + 1 THEN",
        OBJECTS_TEST,
    ),
    Mutant(
        "limits: who adds at the same time is not seen",
        LIMITS,
        "PERFORM pg_advisory_xact_lock(hashtextextended(",
        "PERFORM abs(hashtextextended(",
        OBJECTS_TEST,
    ),
    Mutant(
        "stop: nobody writes it down",
        "broker/aios_broker/access/suspensions.py",
        'await append_line(cursor, _line_of("access.suspend", subject, who, {"ended": ended}))',
        "pass",
        STOP_TEST,
    ),
    Mutant(
        "stop: it needs the audit log",
        "broker/aios_broker/access/suspensions.py",
        "    ended = await control.stop(subject, who=who)\n",
        "    ended = 0\n",
        STOP_TEST,
    ),
    Mutant(
        "limits: removed notes count on",
        LIMITS,
        "PERFORM aios_add_notes(owner_id, -count(*), -sum(",
        "PERFORM aios_add_notes(owner_id, 0, -sum(",
        OBJECTS_TEST,
    ),
    Mutant(
        "limits: rewritten notes weigh what they did",
        LIMITS,
        "GROUP BY owner_id HAVING sum(by) <> 0",
        "GROUP BY owner_id HAVING false",
        OBJECTS_TEST,
    ),
)
