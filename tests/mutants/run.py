"""Break the kernel on purpose, one line at a time: the property tests must notice each break.

    python tests/mutants/run.py            all mutants
    python tests/mutants/run.py submit     those whose file or name contains the word
    python tests/mutants/run.py --part 2/3 every third one, from the second on

Each mutant is a copy of the broker's or the workers' package with one piece of text replaced, put
before the installed one on the path. A mutant that survives means that a promise is not tested.
Exit code 0 only when the unbroken tests pass and every mutant dies.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BROKER = ROOT / "broker" / "aios_broker"
LLM = ROOT / "workers" / "aios_workers"
QUEUE_TEST = "tests/integration/test_queue_properties.py"
MANY_TEST = "tests/integration/test_queue_many.py"
HOT_PATH_TEST = "tests/integration/test_hot_path.py"
QUOTA_TEST = "tests/integration/test_quotas.py"
POLICY_TEST = "tests/unit/test_policy_properties.py"
ORDERING_TEST = "tests/integration/test_scheduler_ordering.py"
EXCHANGE_TEST = "tests/integration/test_exchange.py"
ARRANGEMENT_TEST = "tests/unit/test_arrangement.py"
SDK = ROOT / "sdk" / "aios_sdk"
SILENCE_TEST = "tests/unit/test_sdk_silence.py"
SDK_FAULTS_TEST = "tests/integration/test_sdk_faults.py"
WORKERS = 2
TIMEOUT_S = 120.0  # a test that hangs has noticed, too


@dataclass(frozen=True, slots=True)
class Mutant:
    """One break. `old` must stand in the file, or the mutant is out of date and fails the run."""

    name: str
    file: str
    old: str
    new: str
    test: str = QUEUE_TEST
    package: Path = BROKER


REDIS_TEST = "tests/faults/test_ha_redis.py::test_"
FAILOVER_TEST = "tests/faults/test_ha_failover.py::test_"
CLUSTER_TEST = "tests/integration/test_cluster.py::test_"

LUA = "queues/lua/"
SGLANG = "llm/sglang/"
SGLANG_TESTS = "tests/unit/test_sglang_"
BEAM_TEST = "tests/unit/test_beam.py"
TOOLS_TEST = "tests/unit/test_tools.py"
CONSTRAINT_TEST = "tests/unit/test_constraint.py"
SCORES_TEST = "tests/unit/test_llama_scores.py"
ANSWERS_TEST = "tests/integration/test_chat_answers.py"
MUTANTS = (
    Mutant("a known id is published again", LUA + "submit.lua",
           "(check and redis.call('EXISTS', job_key(c, job.id)) == 1)", "false"),
    Mutant("the same id twice in a batch", LUA + "submit.lua", "if seen[job.id] or", "if"),
    Mutant("a second client is not told", LUA + "submit.lua",
           "clients == '' and job.client or clients .. ' ' .. job.client", "clients"),
    Mutant("a stored reply is not sent again", LUA + "submit.lua",
           "reply_to(c, job.client, reply)", ""),
    Mutant("claim gives no new attempt", LUA + "claim.lua",
           "local attempt, queued_ms = job.attempt + 1, job.queued_ms + c.now - job.ready_ms\n"
           "        local number", "local attempt, queued_ms = math.max(job.attempt, 1), 0\n"
           "        local number"),
    Mutant("one with a past is taken for a newcomer", LUA + "claim.lua",
           "if not f[7] then return job end", "do return job end"),
    Mutant("the worker is not told of a past", LUA + "claim.lua",
           "if not job.slices then return row end", "do return row end", HOT_PATH_TEST),
    Mutant("an id that is no text reaches a worker", LUA + "claim.lua",
           "not job.facts and not readable(id)", "false", HOT_PATH_TEST),
    Mutant("claim leaves the id in the queue", LUA + "claim.lua",
           "if prefix > 0 then redis.call('LTRIM', c.queue, prefix, -1) end", ""),
    Mutant("finish without a lease", LUA + "finish.lua",
           "accepted[i] = leases[i] and not seen[job.id] and 1 or 0", "accepted[i] = 1"),
    Mutant("finish keeps the lease", LUA + "finish.lua", "variadic('ZREM', c.leases, members)", ""),
    Mutant("finish keeps the client", LUA + "finish.lua", "variadic('HDEL', c.live, ids)", ""),
    Mutant("finish sends no reply", LUA + "finish.lua", "reply_to(c, clients[i], job.reply)", ""),
    Mutant("finish keeps the deadline", LUA + "finish.lua",
           "variadic('ZREM', c.deadlines, ids)", ""),
    Mutant("a suspended job goes nowhere", LUA + "yield.lua",
           "redis.call(job.reason == 'drain' and 'LPUSH' or 'RPUSH', c.queue, job.id)", ""),
    Mutant("yield goes to the head", LUA + "yield.lua", "'LPUSH' or 'RPUSH'", "'LPUSH' or 'LPUSH'"),
    Mutant("a late yield is taken", LUA + "yield.lua",
           "accepted[i] = leases[i] and not seen[job.id] and 1 or 0", "accepted[i] = 1"),
    Mutant("everybody yields to one waiting job", LUA + "slice.lua",
           "if told >= room then return false end", ""),
    Mutant("one more yields than waits", LUA + "slice.lua", ">= room", "> room"),
    Mutant("the score is not asked", LUA + "slice.lua",
           "or outranked(c, id, first)", "or true"),
    Mutant("a lost lease is renewed", LUA + "renew.lua",
           "        if leases[i] then", "        if true then"),
    Mutant("chunks of a lost lease", LUA + "emit.lua", "if leases[i] then", "if true then"),
    Mutant("a dead worker's job is not put back", LUA + "reclaim.lua",
           "redis.call('LPUSH', c.queue, id)", ""),
    Mutant("a poison job is tried for ever", LUA + "reclaim.lua",
           "losses >= max_losses", "false"),
    Mutant("a lost answer counts as a lost worker", LUA + "reclaim.lua",
           "(is_alive(c, worker) and 0 or 1)", "1"),
    Mutant("a suspect is lent with others", LUA + "claim.lua",
           "return job.losses >= max_losses - 1", "return false"),
    Mutant("losses are not counted", LUA + "reclaim.lua", "count(losses) + (is", "(is"),
    Mutant("cancel leaves the job waiting", LUA + "lib.lua",
           "leave_queue(c, id)\n    end\n    redis.call('ZREM', c.held",
           "local _ = 0\n    end\n    redis.call('ZREM', c.held"),
    Mutant("cancel leaves the lease", LUA + "lib.lua",
           "local ran = redis.call('ZREM', c.leases, member) == 1",
           "local ran = redis.call('ZSCORE', c.leases, member) and true"),
    Mutant("cancel tells nobody", LUA + "lib.lua",
           "reply_to(c, redis.call('HGET', c.live, id), reply)", ""),
    Mutant("snapshots are never dropped", LUA + "lib.lua",
           "redis.call('UNLINK', snapshot_key(c, ids[i]))", ""),
    Mutant("the snapshot budget drifts", LUA + "lib.lua", "#data - old", "#data"),
    Mutant("a held job keeps its place", LUA + "hold.lua", "leave_queue(c, id)", ""),
    Mutant("all that wait are asked for each time", "silence.py",
           "recheck_s * 2 ** min(pending.asks, MOST_DOUBLINGS)", "recheck_s", SILENCE_TEST, SDK),
    Mutant("a client asks too late", "silence.py", ", longest_s)", ", 2 * longest_s)",
           SILENCE_TEST, SDK),
    Mutant("one that is forgotten says nothing of the others", "session.py",
           "self._is_alarmed = True", "pass", SDK_FAULTS_TEST, SDK),
    Mutant("many are looked for one by one", LUA + "lib.lua",
           "if #ids <= FEW then", "if true then", MANY_TEST),
    Mutant("the search ends too early", LUA + "lib.lua",
           "if sought == 0 then break end", "break", MANY_TEST),
    Mutant("places behind the head are off by it", LUA + "claim.lua",
           "removed[i] - 1 - prefix", "removed[i] - 1", MANY_TEST),
    Mutant("a sweep ends one part", "queues/order.py",
           "if count < SWEEP_STEP or done >= limit:", "if True:", MANY_TEST),
    Mutant("release forgets the queue", LUA + "release.lua",
           "redis.call('RPUSH', c.queue, id)", ""),
    Mutant("an old epoch may reorder", LUA + "reorder.lua",
           "if not leads(c, epoch) then return 0 end", ""),
    Mutant("a leadership that ran out goes on", LUA + "lib.lua",
           "current == epoch and count(until_ms) > c.now", "current == epoch",
           REDIS_TEST + "a_leadership_that_ran_out_unnoticed_changes_nothing"),
    Mutant("a leader that slept keeps its epoch", LUA + "lead.lua",
           "local goes_on = stands and current == holder", "local goes_on = current == holder",
           REDIS_TEST + "jobs_of_living_workers_are_not_taken_back_after_a_hang"),
    Mutant("an emptied Redis counts epochs anew", LUA + "lead.lua",
           "math.max(epoch, seen) + 1", "epoch + 1",
           REDIS_TEST + "a_leader_of_before_changes_nothing_in_an_emptied_redis"),
    Mutant("a full Redis lets nothing end", LUA + "lib.lua", "{'allow-oom'}", "{}",
           REDIS_TEST + "a_full_redis_refuses_new_work_and_lets_what_runs_end"),
    Mutant("a full Redis takes new work", LUA + "lib.lua", "{submit = true, emit", "{emit",
           REDIS_TEST + "a_full_redis_refuses_new_work_and_lets_what_runs_end"),
    Mutant("a step runs on half a shard", "queues/keys.py", 'self.own("gate")',
           'self.queue("llm")',
           CLUSTER_TEST + "while_a_slot_moves_key_by_key_no_step_runs_on_half_of_it"),
    Mutant("a replica is taken for a master", "queues/seek.py", 'elif wire.role == "replica":',
           'elif wire.role == "nobody":',
           FAILOVER_TEST + "the_master_is_found_wherever_it_stands_in_the_url"),
    Mutant("one of two masters is guessed", "queues/seek.py", "if len(masters) == 1:",
           "if masters:", FAILOVER_TEST + "two_that_both_call_themselves_master_are_refused"),
    Mutant("a demoted master is kept", "queues/wire.py", "self.retire(NotHere(text))", "pass",
           FAILOVER_TEST + "a_master_that_is_demoted_is_left_for_the_new_one"),
    Mutant("reorder drops those not named", LUA + "reorder.lua",
           "if not named[id] then rest[#rest + 1] = id end", ""),
    Mutant("an old epoch may exchange", LUA + "exchange.lua",
           "if not leads(c, epoch) then return 0 end", "", EXCHANGE_TEST),
    Mutant("half an exchange", LUA + "exchange.lua",
           "redis.call('LSET', c.queue, other_at, id)", "", EXCHANGE_TEST),
    Mutant("places are trusted", LUA + "exchange.lua",
           "redis.call('LINDEX', c.queue, at) == id then", "redis.call('LINDEX', c.queue, at) then",
           EXCHANGE_TEST),
    Mutant("what is new at the tail is not seen", LUA + "look.lua",
           "if score == '' or tonumber(score) < highest then",
           "if score ~= '' and tonumber(score) < highest then", ORDERING_TEST),
    Mutant("an unordered head passes", LUA + "look.lua",
           "if not score or score < before then return false end", "", ORDERING_TEST),
    Mutant("equal scores lose their order", "scheduler/arrangement.py",
           "(scores.get(job_id, LAST), place, job_id)",
           "(scores.get(job_id, LAST), -place, job_id)", ARRANGEMENT_TEST),
    Mutant("a place is passed over", "scheduler/arrangement.py",
           "            self._next += 1\n", "            self._next += 2\n", ARRANGEMENT_TEST),
    Mutant("a deleted job is never answered", LUA + "reconcile.lua",
           "if not status or status == 'canceled' then", "if false then"),
    Mutant("a running job that is deleted runs on", LUA + "reconcile.lua",
           "if status and status ~= 'canceled' then return 0 end", "if true then return 0 end"),
    Mutant("a requeued job is not taken in", LUA + "reconcile.lua",
           "        adopt(c, id, iso)", "        local _ = 0"),
    Mutant("the journal misses yields", LUA + "yield.lua",
           "note(c, job.reason == 'hold' and 'hold' or 'yield', job.id, job.attempt, worker,\n"
           "                suspend(c, job))", "suspend(c, job)"),
    Mutant("what is told twice is charged twice", LUA + "quota.lua",
           "if f[5] == attempt then", "if false then"),
    Mutant("earlier attempts were for nothing", LUA + "quota.lua",
           "math.max(had_tokens, base_tokens + tokens)", "math.max(had_tokens, tokens)"),
    Mutant("time of earlier attempts is lost", LUA + "quota.lua",
           "math.max(had_ms, base_ms + ran_ms)", "math.max(had_ms, ran_ms)"),
    Mutant("the counters take totals for new use", LUA + "quota.lua",
           "now_tokens - had_tokens, now_prompt", "now_tokens, now_prompt"),
    Mutant("the prompt is charged at each slice", LUA + "quota.lua",
           "math.max(had_prompt, prompt)", "had_prompt + prompt"),
    Mutant("the last slice is not charged", LUA + "finish.lua",
           "job.ran_ms, job.tokens, job.prompt)\n    if", "0, 0, 0)\n    if"),
    Mutant("a suspension charges nothing", LUA + "yield.lua",
           "job.ran_ms, job.tokens, job.prompt)", "0, 0, 0)"),
    Mutant("failures count as finished", LUA + "quota.lua",
           "well and 1 or 0, well and 0 or 1", "1, 0"),
    Mutant("the journal misses use", LUA + "lib.lua", "add('u', uses)", ""),
    Mutant("the journal misses what dead workers used", LUA + "reclaim.lua",
           "count(tokens) .. ',' .. count(ran_ms))", "'')", QUOTA_TEST),
    Mutant("the journal misses what was cancelled", LUA + "lib.lua",
           "tokens and tokens .. ','", "false and tokens .. ','", QUOTA_TEST),
    Mutant("one more waits than may", LUA + "quota.lua",
           "waiting + fresh[subject] > most", "waiting + fresh[subject] > most + 1", QUOTA_TEST),
    Mutant("a batch is counted as one", LUA + "quota.lua",
           "fresh[subject] = (fresh[subject] or 0) + 1", "fresh[subject] = 1", QUOTA_TEST),
    Mutant("one more runs than may", LUA + "quota.lua",
           "if runs >= most then", "if runs > most then", QUOTA_TEST),
    Mutant("a batch may run as one", LUA + "claim.lua",
           "quota.moved(c, job.facts or nil, 'q', 'r')\n            chosen", "chosen"),
    Mutant("minutes never end", LUA + "quota.lua",
           "if left <= 0 then", "if false then", QUOTA_TEST),
    Mutant("slot time is free", LUA + "quota.lua",
           "drain(c, 'ms', subject, slot_s and slot_s * 1000, ran_ms)", "", QUOTA_TEST),
    Mutant("quotas of all are nobody's", LUA + "quota.lua", "subject, scope .. ':*')",
           "subject, subject)", QUOTA_TEST),
    Mutant("dead workers keep their agent's places", LUA + "reclaim.lua",
           "quota.moved(c, facts or nil, 'r', 'q')", ""),
    Mutant("a cancelled job keeps its agent's place", LUA + "lib.lua",
           "ran and 'r' or 'q', nil)", "'q', nil)", QUOTA_TEST),
    Mutant("a wrong load stays", LUA + "quota.lua",
           "if age_ms >= math.max(RECOUNT_MS", "if false and age_ms >= math.max(RECOUNT_MS"),
    Mutant("slots are freed for who may not run", LUA + "slice.lua",
           " and quota.admits(c, theirs or nil, facts)", "", QUOTA_TEST),
    Mutant("an agent cannot take turns with itself", LUA + "quota.lua",
           "if freed and freed.limited[i] == subject then", "if false then", QUOTA_TEST),
    Mutant("under fifo nobody yields who is over", LUA + "slice.lua",
           "return over or preempt", "return preempt", QUOTA_TEST),
    Mutant("a look begins anew each time", LUA + "quota.lua",
           "return count(place), FAR_LOOK", "return 0, FAR_LOOK", QUOTA_TEST),
    Mutant("a minute never fills up", LUA + "quota.lua",
           "left + (c.now - at) * limit / 60000", "left", QUOTA_TEST),
    Mutant("one told to yield hears otherwise", LUA + "slice.lua",
           "(redis.call('ZSCORE', c.yielding, id) and 1 or 0)", "0", QUOTA_TEST),
    Mutant("an id that comes again silences who waited", LUA + "submit.lua",
           "        bury_deleted(c, jobs, iso)", "        local _ = 0"),
    Mutant("a deleted job's worker ends the next one", LUA + "submit.lua",
           "            job.attempt = lent[job.id]", ""),
    Mutant("what a stock tool enqueues stays held", LUA + "reconcile.lua",
           "mended = mended + let_go(c, id)", "mended = mended + 0"),
    Mutant("scores of what is gone stay", LUA + "reconcile.lua",
           "    drop_leftovers(c, live)", ""),
    Mutant("nice values are not heeded", "scheduler/policy.py",
           "+ nice * AGEING_MS_PER_NICE)", ")", POLICY_TEST),
    Mutant("nice values are upside down", "scheduler/policy.py",
           "+ nice * AGEING_MS_PER_NICE)", "- nice * AGEING_MS_PER_NICE)", POLICY_TEST),
    Mutant("round robin does not preempt", "scheduler/policy.py",
           'preempt: Preempt = "waiting"', 'preempt: Preempt = "none"', POLICY_TEST),
    Mutant("fifo preempts", "scheduler/policy.py",
           'preempt: Preempt = "none"', 'preempt: Preempt = "waiting"', POLICY_TEST),
    Mutant("the highest score goes first", "scheduler/policy.py",
           "sorted(scored, key=_score)", "sorted(scored, key=_score, reverse=True)", POLICY_TEST),
    Mutant("SGLang: the end token stays among the ids", SGLANG + "steps.py",
           "            ids = ids[:-1]", "            ids = ids[:]",
           SGLANG_TESTS + "steps.py", LLM),
    Mutant("SGLang: cumulative ids come twice", SGLANG + "steps.py",
           "begin = 0 if self._kind.incremental else self._taken", "begin = 0",
           SGLANG_TESTS + "steps.py", LLM),
    Mutant("SGLang: an end that comes with an abort is lost", SGLANG + "steps.py",
           "return self._kind.is_end(ids[-1])", "return False", SGLANG_TESTS + "steps.py", LLM),
    Mutant("SGLang: an abort of the server's own passes for ours", SGLANG + "steps.py",
           "if not aborted:", "if False:", SGLANG_TESTS + "steps.py", LLM),
    Mutant("SGLang: markers in messages become special tokens", SGLANG + "tokenizer.py",
           "if not hidden.found:", "if True:", SGLANG_TESTS + "tokenizer.py", LLM),
    Mutant("SGLang: an open breaker lets requests through", SGLANG + "breaker.py",
           "if wait_s > 0:", "if wait_s > 1e9:", SGLANG_TESTS + "breaker.py", LLM),
    Mutant("SGLang: health outweighs failures", SGLANG + "breaker.py",
           'if self.state == "half-open":\n            self.succeeded()', "self.succeeded()",
           SGLANG_TESTS + "breaker.py", LLM),
    Mutant("beams: one that ends late is finished", "llm/beam.py",
           "among_best = place < self._rules.width", "among_best = True", BEAM_TEST, LLM),
    Mutant("beams: the search does not end with enough of them", "llm/beam.py",
           "or len(self.finished) >= self._rules.width", "", BEAM_TEST, LLM),
    Mutant("beams: the end token is not weighed", "llm/beam.py",
           "total, length = total + each.end_logprob, length + 1", "pass", BEAM_TEST, LLM),
    Mutant("beams: ties go to the worse parent", "llm/beam.py",
           "(-each.total, each.parent, each.rank)", "(-each.total, -each.parent, each.rank)",
           BEAM_TEST, LLM),
    Mutant("beams: saved in another order", "llm/beam.py",
           "tuple(place(beam) for beam in search.live)",
           "tuple(place(beam) for beam in search.live[::-1])", BEAM_TEST, LLM),
    Mutant("beams: a tree holds its roots as children", "llm/beam.py",
           "beams[place] if place >= 0", "beams[place] if place > 0",
           BEAM_TEST, LLM),
    Mutant("snapshot: a score has its neighbour's alternatives", "contract/snapshot.py",
           "ids[end - count : end], top_logprobs", "ids[end - count - 1 : end - 1], top_logprobs",
           "tests/unit/test_snapshot.py"),
    Mutant("snapshot: one answer is written in the new form", "llm/generation.py",
           "len(self._branches) == 1 and request.logprobs is None", "False", ANSWERS_TEST, LLM),
    Mutant("answers: all have the same seed", "llm/plan.py",
           "(sampling.seed + number)", "(sampling.seed)", ANSWERS_TEST, LLM),
    Mutant("answers: a resumed one forgets a token", "llm/branch.py",
           "resume_ids=tuple(self.ids)", "resume_ids=tuple(self.ids[:-1])", ANSWERS_TEST, LLM),
    Mutant("answers: what was streamed is streamed again", "llm/generation.py",
           "self._sent_before - self._written", "0", ANSWERS_TEST, LLM),
    Mutant("answers: one that waits for the core is waited for", "llm/branch.py",
           "if self._streaming is not None and not self._stepped:", "if False:",
           ANSWERS_TEST, LLM),
    Mutant("tools: a call that is cut off counts", "llm/tools.py",
           "return message, [body for body, end, _ in bodies if end]",
           "return message, [body for body, _, _ in bodies]", TOOLS_TEST, LLM),
    Mutant("tools: a tool that is not there is called", "llm/tools.py",
           "call is not None and call.name in known", "call is not None", TOOLS_TEST, LLM),
    Mutant("tools: references lead out of the schema", "llm/tools.py",
           "key: place + value[1:]", "key: value", TOOLS_TEST, LLM),
    Mutant("tools: a call is streamed", "llm/generation.py",
           "ready if self._veil is None else self._veil.passed(ready)", "ready",
           "tests/integration/test_chat_tools.py", LLM),
    Mutant("forms: a resumed matcher has read nothing", "llm/constraint.py",
           "for token in output_ids:", "for token in ():", CONSTRAINT_TEST, LLM),
    Mutant("forms: a complete text goes on", "llm/constraint.py",
           "return self._inner.is_stopped() and not", "return False and not", CONSTRAINT_TEST, LLM),
    Mutant("forms: keywords are passed over", "llm/constraint.py",
           '{"lenient": False}', '{"lenient": True}', CONSTRAINT_TEST, LLM),
    Mutant("forms: a check that died has passed", "llm/constraint_check.py",
           'return not_kept(constraint, "it is', 'return "" and not_kept(constraint, "it is',
           CONSTRAINT_TEST, LLM),
    Mutant("sampler: a mask is forgotten", "llm/llama/sampler.py",
           "np.where(allowed, logits, _NEVER)", "logits", SCORES_TEST, LLM),
    Mutant("sampler: a bias changes the model's logits", "llm/llama/sampler.py",
           "    ids = np.fromiter((token for token, _ in sampling.logit_bias), dtype=np.int64)\n"
           "    logits = logits.copy()\n",
           "    ids = np.fromiter((token for token, _ in sampling.logit_bias), dtype=np.int64)\n",
           SCORES_TEST, LLM),
    Mutant("scores: ties go to the higher id", "llm/llama/scores.py",
           "ids = ids[np.argsort(-exact[ids], kind=\"stable\")]",
           "ids = ids[::-1][np.argsort(-exact[ids[::-1]], kind=\"stable\")]", SCORES_TEST, LLM),
)  # fmt: skip


def run_tests(test: str, package_root: Path) -> subprocess.CompletedProcess[str]:
    """Run one test file against the package below `package_root`.

    MUTANT=1 tells the test to stop at the first failure instead of looking for a shorter one.
    """
    roots = [package_root, ROOT, *(ROOT / name for name in ("broker", "sdk", "workers"))]
    path = " ".join(f'"{root}"' for root in roots)
    environment = {**os.environ, "PYTHONPATH": str(package_root), "MUTANT": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", test, "-x", "-q", "-p", "no:cacheprovider",
         "-o", f"pythonpath={path}"],
        cwd=ROOT, env=environment, timeout=TIMEOUT_S,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def judge(mutant: Mutant, folder: Path) -> str:
    """Return what became of a mutant: killed, SURVIVED, or OUT OF DATE."""
    root = Path(tempfile.mkdtemp(dir=folder))
    copy = root / mutant.package.name
    shutil.copytree(mutant.package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    target = copy / mutant.file
    source = target.read_text()
    if mutant.old not in source:
        return "OUT OF DATE"
    target.write_text(source.replace(mutant.old, mutant.new, 1))
    try:
        return "killed" if run_tests(mutant.test, root).returncode == 1 else "SURVIVED"
    except subprocess.TimeoutExpired:
        return "killed"


def chosen_mutants(words: list[str]) -> list[Mutant]:
    """Return the mutants that a command line asks for."""
    if words[:1] == ["--part"]:
        part, _, parts = words[1].partition("/")
        return list(MUTANTS[int(part) - 1 :: int(parts)])
    return [m for m in MUTANTS if all(word in m.file + " " + m.name for word in words)]


def main(words: list[str]) -> int:
    """Run all mutants that match; return the exit code."""
    chosen = chosen_mutants(words)
    with (
        tempfile.TemporaryDirectory(prefix="aios-mutants-") as folder,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        tests = sorted({mutant.test for mutant in chosen})
        for test, unbroken in zip(
            tests, pool.map(lambda test: run_tests(test, BROKER.parent), tests), strict=True
        ):
            if unbroken.returncode != 0:
                print(f"the unbroken tests fail already: {test}\n{unbroken.stdout}")
                return 1
        verdicts = []
        for mutant, verdict in zip(
            chosen, pool.map(lambda m: judge(m, Path(folder)), chosen), strict=True
        ):
            verdicts.append(verdict)
            print(f"{verdict:11} {mutant.file}: {mutant.name}", flush=True)
    dead = verdicts.count("killed")
    print(f"{dead} of {len(chosen)} mutants killed")
    return 0 if chosen and dead == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
