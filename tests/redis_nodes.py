"""Redis servers of a test's own: a master with its replica, a cluster of three."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import redis

from aios_local.embedded.redis import find_valkey, free_port
from tests.waiting import wait_until

SLOTS = 16_384
START_S = 20.0
STABLE = ("cluster_state:ok", "cluster_known_nodes:{}", "cluster_slots_ok:16384")
LONGEST_PORT = 55_535  # a node's bus listens 10,000 above


class RedisNode:
    """One server on a port of 127.0.0.1 that can be killed, frozen and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = next(port for port in iter(free_port, 0) if port < LONGEST_PORT)
        self._command = (
            str(find_valkey()),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            "--logfile",
            str(folder / "log"),
            "--daemonize",
            "no",
            "--save",
            "",
            "--appendonly",
            "yes",
            "--repl-diskless-sync-delay",
            "0",
            *options,
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.place}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)
        wait_until(self._answers, START_S)

    def _answers(self) -> bool:
        try:
            return bool(self.run("PING"))
        except redis.RedisError:
            return False

    def kill(self) -> None:
        """End it as `kill -9` does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def run(self, *command: object) -> object:
        """Run one command and return its answer, texts decoded."""
        with redis.Redis(
            port=self.port, decode_responses=True, socket_timeout=10.0, socket_connect_timeout=1.0
        ) as client:
            return client.execute_command(*command)

    def now_ms(self) -> int:
        """Return the time by its clock."""
        seconds, micros = cast(list[int], self.run("TIME"))
        return int(seconds) * 1000 + int(micros) // 1000

    def info(self, section: str) -> dict[str, object]:
        found = self.run("INFO", section)
        assert isinstance(found, dict)
        return found


@contextmanager
def running(nodes: Sequence[RedisNode]) -> Iterator[None]:
    """Run servers for the length of a block."""
    with ExitStack() as stack:
        for node in nodes:
            node.start()
            stack.callback(node.kill)
        yield


def follow(replica: RedisNode, master: RedisNode) -> None:
    """Make one the replica of another, and wait until it has all of it."""
    replica.run("REPLICAOF", "127.0.0.1", master.port)
    wait_until(lambda: replica.info("replication").get("master_link_status") == "up", START_S)


def promote(replica: RedisNode) -> None:
    replica.run("REPLICAOF", "NO", "ONE")


class RedisCluster:
    """Three masters, a third of the slots each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.nodes = [
            RedisNode(
                folder / str(number),
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                "2000",
                "--appendfsync",
                "always",
            )
            for number in range(3)
        ]

    @property
    def url(self) -> str:
        return f"redis://{','.join(node.place for node in self.nodes)}/0"

    def join(self) -> None:
        """Give each its slots, and make them known to each other."""
        bounds = [SLOTS * part // 3 for part in range(4)]
        for node, (first, end) in zip(self.nodes, itertools.pairwise(bounds), strict=True):
            node.run("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for node in self.nodes[1:]:
            node.run("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        self.wait_whole()

    def wait_whole(self) -> None:
        wait_until(lambda: all(map(self._sees_all, self.nodes)), 30.0)

    def _sees_all(self, node: RedisNode) -> bool:
        said = str(node.run("CLUSTER", "INFO"))
        metadata = [fact.format(len(self.nodes)) for fact in STABLE]
        return all(fact.replace(":", "': '") in said or fact in said for fact in metadata)

    def owner(self, tag: str) -> RedisNode:
        """Return the node that serves the keys of a hash tag, by the word of that node."""
        [owner] = self._owners(self.slot(tag))
        return owner

    def _owners(self, slot: int) -> list[RedisNode]:
        return [node for node in self.nodes if slot in self._own_slots(node)]

    def slot(self, tag: str) -> int:
        return int(str(self.nodes[0].run("CLUSTER", "KEYSLOT", f"{{{tag}}}")))

    def node_id(self, node: RedisNode) -> str:
        return str(node.run("CLUSTER", "MYID"))

    def _own_slots(self, node: RedisNode) -> set[int]:
        mine: set[int] = set()
        rows = node.run("CLUSTER", "SLOTS")
        assert isinstance(rows, list)
        for first, last, (_, port, *_rest), *_replicas in rows:
            if int(port) == node.port:
                mine |= set(range(int(first), int(last) + 1))
        return mine

    def move_key_by_key(self, tag: str, target: RedisNode) -> None:
        """Move a slot as `valkey-cli --cluster reshard` does."""
        source, slot = self.owner(tag), self.slot(tag)
        source_id, target_id = self.node_id(source), self.node_id(target)
        target.run("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        while keys := source.run("CLUSTER", "GETKEYSINSLOT", slot, 10):
            assert isinstance(keys, list)
            source.run("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)
        for node in (target, source, *self.nodes):
            node.run("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def move_at_once(self, tag: str, target: RedisNode) -> None:
        """Move a slot as Valkey 9 can: copied beside the traffic, handed over in one moment."""
        source, slot = self.owner(tag), self.slot(tag)
        source.run(
            "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.node_id(target)
        )
        wait_until(lambda: self._owners(slot) == [target], 30.0)


@contextmanager
def cluster(folder: Path) -> Iterator[RedisCluster]:
    """Run a cluster for the length of a block."""
    made = RedisCluster(folder)
    with running(made.nodes):
        made.join()
        yield made
    shutil.rmtree(folder, ignore_errors=True)


def program_environment(url: str, prefix: str, root: Path) -> dict[str, str]:
    """Return what a process of the kernel needs to serve one shard."""
    folders = ("broker", "workers", "sdk")
    return {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": os.pathsep.join(str(root / folder) for folder in folders),
        "AIOS_REDIS_URL": url,
        "RQ_KEY_PREFIX": prefix,
    }
