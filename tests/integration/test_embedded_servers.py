"""The embedded servers start, stop, keep what they were given, and leave nothing behind."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from aios_broker.contract.errors import InvalidConfig, Unavailable
from aios_broker.process import child as child_module
from aios_broker.process.child import StandaloneServer
from aios_local.embedded.postgres import (
    PostgresInstall,
    PostgresServer,
    find_postgres,
    install_for_nobody,
    nobody_can_enter,
)
from aios_local.embedded.redis import RedisServer, memory_bytes
from aios_local.embedded.state import StateDir
from tests.conftest import RunningPostgres
from tests.waiting import wait_until

NOBODY_ID = 65534
IDENTITIES = ["namespace", "nobody"] if os.geteuid() == 0 else ["same"]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    state = StateDir.open(tmp_path / "state")
    yield state
    state.remove_sockets()


def standalone(state: StateDir, server: RedisServer | PostgresServer) -> StandaloneServer:
    service = server.service()
    return StandaloneServer(service, state.log_dir / f"{service.name}.log")


def test_redis_keeps_what_it_acknowledged_across_kill_minus_9(state: StateDir) -> None:
    server = RedisServer.of(state)
    process = standalone(state, server)
    with process, redis.Redis.from_url(server.url) as client:
        client.set("kept", "yes")
        client.function_load("#!lua name=f\nredis.register_function('f', function() return 7 end)")
        wait_until(lambda: client.info("persistence")["aof_pending_bio_fsync"] == 0)
        process.kill()
        process.start()
        assert client.get("kept") == b"yes"
        assert client.fcall("f", 0) == 7
        assert process.stop() == 0


def test_redis_runs_with_the_settings_that_the_queues_count_on(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        settings = {
            name: client.config_get(name)[name]
            for name in (
                *("appendonly", "appendfsync", "save", "unixsocketperm"),
                *("hash-max-listpack-value", "stream-node-max-bytes", "port"),
                *("maxmemory", "maxmemory-policy"),
            )
        }
    assert settings == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "unixsocketperm": "700",
        "hash-max-listpack-value": "1024",
        "stream-node-max-bytes": "256",
        "port": "0",
        "maxmemory": str(memory_bytes() // 2),
        "maxmemory-policy": "noeviction",
    }


def test_redis_listens_on_a_port_of_the_loopback_only_when_asked(state: StateDir) -> None:
    server = RedisServer.of(state, port=0)
    assert server.tcp_url is not None
    with standalone(state, server), redis.Redis.from_url(server.tcp_url) as client:
        assert client.ping()
        assert client.config_get("bind")["bind"] == "127.0.0.1"


@pytest.mark.parametrize("identity", IDENTITIES)
def test_postgres_keeps_what_it_committed_across_kill_minus_9(
    state: StateDir, identity: child_module.Identity
) -> None:
    server = PostgresServer.of(state, identity=identity)
    process = standalone(state, server)
    try:
        with process:
            with psycopg.connect(server.libpq_url()) as connection:
                connection.execute("CREATE TABLE note (at vector(3))")
                connection.execute("INSERT INTO note VALUES ('[1,2,3]')")
            process.kill()
            process.start()
            with psycopg.connect(server.libpq_url()) as connection:
                found = connection.execute("SELECT at <-> '[1,2,4]' FROM note").fetchone()
            assert found == (1.0,)
            assert process.stop() == 0
    finally:
        server.remove()


@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO PROGRAM 'touch /tmp/owned'",
        "SELECT pg_read_file('/etc/passwd')",
        "CREATE ROLE mine SUPERUSER",
        "ALTER ROLE aios SUPERUSER",
        "SET ROLE postgres",
        "ALTER SYSTEM SET log_connections = on",
        "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'libc.so.6', 'abs'",
    ],
)
def test_the_kernels_login_is_no_superuser(
    postgres_server: RunningPostgres, statement: str
) -> None:
    url = postgres_server.server.libpq_url()
    with (
        psycopg.connect(url, autocommit=True) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


def test_postgres_starts_although_another_process_has_the_old_number(state: StateDir) -> None:
    server = PostgresServer.of(state, durable=False)
    process = standalone(state, server)
    with process:
        process.kill()
    lock_file = server.data_dir / "postmaster.pid"
    lines = lock_file.read_text().splitlines()
    # Of another session than ours: Postgres already ignores its own ancestors.
    with subprocess.Popen(["sleep", "60"]) as stranger:
        lock_file.write_text("\n".join([str(stranger.pid), *lines[1:]]))
        with process:
            assert server.answers()
        stranger.kill()


def test_a_half_made_data_directory_is_made_anew(state: StateDir) -> None:
    server = PostgresServer.of(state, durable=False)
    half_made = state.path / "postgres.new"
    half_made.mkdir()
    (half_made / "PG_VERSION").write_text("18")
    with standalone(state, server):
        assert server.answers()
    assert not half_made.exists()


def test_two_kernels_side_by_side_do_not_meet(tmp_path: Path) -> None:
    states = [StateDir.open(tmp_path / name) for name in ("one", "two")]
    servers = [RedisServer.of(state) for state in states]
    with standalone(states[0], servers[0]), standalone(states[1], servers[1]):
        clients = [redis.Redis.from_url(server.url) for server in servers]
        clients[0].set("mine", 1)
        assert clients[1].get("mine") is None
        for client in clients:
            client.close()


def test_a_second_server_on_the_same_data_is_refused(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "LOCK_TIMEOUT_S", 0.1)
    server = RedisServer.of(state)
    with standalone(state, server):
        with pytest.raises(Unavailable, match="another redis still uses"):
            standalone(state, server).start()
        assert server.answers()


@pytest.mark.parametrize("folder", ["with spaces & more", "deep/" * 30])
def test_sockets_stay_short_and_plain_whatever_the_state_directory(
    tmp_path: Path, folder: str
) -> None:
    state = StateDir.open(tmp_path / folder)
    try:
        server = RedisServer.of(state)
        with standalone(state, server), redis.Redis.from_url(server.url) as client:
            assert client.ping()
        assert len(os.fsencode(server.socket_path)) < 100
        assert " " not in server.url
        private = server.socket_path.parent.parent.stat()
        assert stat.S_IMODE(private.st_mode) == 0o700
    finally:
        state.remove_sockets()
    assert not server.socket_path.parent.exists()


def test_a_socket_directory_that_others_prepared_is_not_used(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "with spaces")
    trap = state.socket_dir("redis").parent
    trap.chmod(0o777)
    try:
        with pytest.raises(InvalidConfig, match="open to others"):
            state.socket_dir("redis")
    finally:
        state.remove_sockets()


def test_a_state_directory_that_cannot_be_made_names_its_variable(tmp_path: Path) -> None:
    occupied = tmp_path / "a-file"
    occupied.write_text("")
    with pytest.raises(InvalidConfig) as caught:
        StateDir.open(occupied / "state")
    assert caught.value.field == "AIOS_STATE_DIR"
    assert caught.value.remedy


def test_a_server_that_cannot_start_says_why(state: StateDir) -> None:
    server = RedisServer.of(state, port=70_000)
    with pytest.raises(Unavailable, match=r"redis did not start: .*port"):
        standalone(state, server).start()


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
def test_servers_die_with_the_process_that_started_them(tmp_path: Path, death: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", START_BOTH_AND_WAIT, str(tmp_path / "state")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as starter:
        assert starter.stdout is not None
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        assert len(pids) == 2
        assert all(_alive(pid) for pid in pids)
        starter.send_signal(death)
    wait_until(lambda: not any(_alive(pid) for pid in pids))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_can_run_both_servers() -> None:
    interpreter = _interpreter_for(NOBODY_ID)
    if interpreter is None or not nobody_can_enter(find_postgres().prefix):
        pytest.skip("no interpreter or packages here that another user can use")
    with tempfile.TemporaryDirectory(prefix="aios-other-user-") as home:
        os.chown(home, NOBODY_ID, NOBODY_ID)
        done = subprocess.run(
            [interpreter, "-c", RUN_BOTH, f"{home}/state"],
            user=NOBODY_ID,
            group=NOBODY_ID,
            capture_output=True,
            text=True,
            timeout=50,
            env={"PYTHONPATH": os.pathsep.join(sys.path), "HOME": home},
            check=False,
        )
    assert done.stdout.split() == ["True", "True", "same", str(NOBODY_ID)], done.stderr


def test_as_nobody_the_data_stays_in_a_state_directory_that_he_can_reach() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory(prefix="aios-reachable-") as home:
        Path(home).chmod(0o711)
        state = StateDir.open(Path(home) / "state")
        server = PostgresServer.of(state, identity="nobody", durable=False)
        with standalone(state, server):
            assert server.answers()
        assert server.data_dir == state.path / "postgres"
        assert server.data_dir.stat().st_uid == NOBODY_ID
        server.remove()


def test_programs_that_nobody_cannot_reach_are_copied_with_their_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "closed" / "pg"
    (package / "install" / "bin").mkdir(parents=True)
    (package / "install" / "bin" / "postgres").write_text("program")
    libs = package.with_name("pg.libs")
    libs.mkdir()
    (libs / "libpq.so").write_text("library")
    package.parent.chmod(0o700)
    with tempfile.TemporaryDirectory(prefix="aios-open-") as temporary:
        Path(temporary).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        wanted = PostgresInstall(package / "install", package, libs)
        copied = install_for_nobody(wanted)
        assert nobody_can_enter(copied.prefix / "bin")
        assert Path(copied.program("postgres")).read_text() == "program"
        assert (copied.prefix.parent.parent / "pg.libs" / "libpq.so").read_text() == "library"
        assert install_for_nobody(wanted) == copied
        assert len(list(Path(temporary).iterdir())) == 1


START_BOTH_AND_WAIT = """
import signal, sys
from pathlib import Path
from aios_local.embedded.postgres import PostgresServer
from aios_local.embedded.redis import RedisServer
from aios_broker.process.child import StandaloneServer
from aios_local.embedded.state import StateDir

state = StateDir.open(Path(sys.argv[1]))
processes = []
for server in (RedisServer.of(state), PostgresServer.of(state, durable=False)):
    process = StandaloneServer(server.service(), state.log_dir / "server.log")
    process.start()
    processes.append(str(process.pid))
print(*processes, flush=True)
signal.pause()
"""

RUN_BOTH = """
import sys
from pathlib import Path
from aios_local.embedded.postgres import PostgresServer
from aios_local.embedded.redis import RedisServer
from aios_broker.process.child import StandaloneServer
from aios_local.embedded.state import StateDir

state = StateDir.open(Path(sys.argv[1]))
for server in (RedisServer.of(state), PostgresServer.of(state)):
    with StandaloneServer(server.service(), state.log_dir / "server.log"):
        print(server.answers())
print(server.identity, state.path.stat().st_uid)
"""


def _interpreter_for(uid: int) -> str | None:
    """Return an interpreter that `uid` can run all this with; ours may lie under /root."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{version}"):
        try:
            subprocess.run(
                [candidate, "-c", "import aios_local.embedded.redis, psycopg"],
                user=uid,
                check=True,
                timeout=10,
                env={"PYTHONPATH": os.pathsep.join(sys.path)},
                stderr=subprocess.DEVNULL,
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    return None


def _alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"
