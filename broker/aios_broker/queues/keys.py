"""Every Redis key. Nothing else builds one, but `lua/shared/lib.lua`: a test compares the two.

Keys of RQ's data model stand under the prefix itself (RQ_KEY_PREFIX, `rq` unless set), ours
under `<prefix>:aios:`. With a hash tag in the prefix (`{shard1}:rq`) all keys of a shard live
in one slot of a Redis Cluster.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one deployment (one prefix)."""

    prefix: str = "rq"

    @property
    def hash_tag(self) -> str:
        """What decides the slot of all keys in a Redis Cluster; empty: each key has its own."""
        _, _, rest = self.prefix.partition("{")
        tag, closed, _ = rest.partition("}")
        return tag if closed else ""

    @property
    def slot_key(self) -> str:
        """The key that every step names; nothing is ever stored there.

        While a cluster moves our slot to another node key by key, a node answers for what it has
        and points elsewhere for what it lacks: this one, always. So no step runs on half a shard.
        """
        return self.own("slot")

    # RQ's own, as RQ 3 names them.

    def queue(self, module: str) -> str:
        """List of job ids: the run queue of a module, all that waits is in it."""
        return f"{self.prefix}:queue:{module}"

    def job(self, job_id: str) -> str:
        """Hash: RQ's job record, and our fields `aios_*` beside it."""
        return f"{self.prefix}:job:{job_id}"

    def results(self, job_id: str) -> str:
        """Stream of RQ results of a job."""
        return f"{self.prefix}:results:{job_id}"

    def registry(self, name: str, module: str) -> str:
        """Zset: one of RQ's registries: wip, finished, failed, canceled, deferred."""
        return f"{self.prefix}:{name}:{module}"

    def worker(self, name: str) -> str:
        """Hash: RQ's worker record."""
        return f"{self.prefix}:worker:{name}"

    def commands(self, worker: str) -> str:
        """Pub/sub channel on which RQ's tools, and we, send commands to a worker."""
        return f"{self.prefix}:pubsub:{worker}"

    @property
    def workers(self) -> str:
        """Set of worker keys."""
        return f"{self.prefix}:workers"

    @property
    def queues(self) -> str:
        """Set of queue keys."""
        return f"{self.prefix}:queues"

    @property
    def suspended(self) -> str:
        """String: there while `rq suspend` keeps all workers from taking anything new."""
        return f"{self.prefix}:suspended"

    # Ours.

    def own(self, name: str) -> str:
        """One of our keys by name, such as `journal`, `live:llm`, `snapshot:<id>`."""
        return f"{self.prefix}:aios:{name}"

    def reply(self, client: str) -> str:
        """List: replies and chunks for one client connection."""
        return self.own(f"reply:{client}")

    def text(self, part: str, job_id: str) -> str:
        """String: what was streamed of an answer, or of the reasoning before it."""
        return self.own(f"{part}:{job_id}")

    def snapshot(self, job_id: str) -> str:
        """String: the latest snapshot of a generation."""
        return self.own(f"snapshot:{job_id}")

    @property
    def journal(self) -> str:
        """Stream: one entry per function call, with all transitions of it."""
        return self.own("journal")
