"""The way out of a sandbox, against a TLS server of the test's own: rules, keys, addresses."""

import asyncio
import base64
import ssl
from pathlib import Path

import pytest

from aios_broker.contract.errors import DatabaseUnavailable, ToolUnavailable
from aios_broker.contract.tools import NetworkRule
from aios_broker.postgres.store import Store
from aios_workers.modules.tool.egress import addresses
from aios_workers.modules.tool.egress.audit_writer import AuditWriter
from aios_workers.modules.tool.egress.log import Asked, EgressLine, EgressLog
from tests.egress_scene import KEY, OWNER, EgressScene, ask, egress_scene
from tests.state_scene import AUDIT_KEY


def get(scene: EgressScene, path: str, *more: str, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {scene.host.name}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def where(scene: EgressScene) -> str:
    return f"{scene.host.name}:{scene.host.port}"


async def test_a_request_that_a_rule_names_reaches_the_host(tmp_path: Path) -> None:
    async with (
        egress_scene(tmp_path) as scene,
        scene.way_out(scene.rule(paths=("/v1",))) as way_out,
    ):
        said = await ask(way_out, where(scene), get(scene, "/v1/x?q=1", "X-More: yes"))
        [heard] = scene.host.heard
        assert said.startswith(b"HTTP/1.1 200 OK")
        assert heard.startswith("GET /v1/x?q=1 HTTP/1.1\r\n")
        assert f"\r\nHost: {where(scene)}\r\n" in heard
        assert "\r\nX-More: yes\r\n" in heard
        origin = f"https://{where(scene)}"
        assert await scene.noted() == [
            (origin, "GET", "allowed", {"requests": 1, "paths": {"/v1/x"}, "keys": set()})
        ]


async def test_a_sandbox_trusts_its_own_authority_alone(tmp_path: Path) -> None:
    async with egress_scene(tmp_path) as scene, scene.way_out(scene.rule()) as way_out:
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(way_out, where(scene), get(scene, "/"), trust=False)
        async with scene.way_out(scene.rule()) as other:
            mine, others = (each.folder / "authority.pem" for each in (way_out, other))
            assert mine.read_bytes() != others.read_bytes()
        assert not other.folder.exists()


@pytest.mark.parametrize(
    ("path", "method", "words"),
    [
        ("/admin", "GET", b"path"),
        ("/v1/%2e%2e/admin", "GET", b"path"),
        ("/v1", "DELETE", b"DELETE"),
    ],
)
async def test_what_no_rule_names_is_refused_within_tls(
    tmp_path: Path, path: str, method: str, words: bytes
) -> None:
    async with (
        egress_scene(tmp_path) as scene,
        scene.way_out(scene.rule(paths=("/v1",))) as way_out,
    ):
        said = await ask(way_out, where(scene), get(scene, path, method=method))
        assert said.startswith(b"HTTP/1.1 403 ")
        assert words in said
        assert scene.host.heard == []
        [(_, _, outcome, _)] = await scene.noted()
        assert outcome.startswith("no rule")


async def test_another_host_is_refused_before_anything_is_looked_up(tmp_path: Path) -> None:
    async with egress_scene(tmp_path) as scene, scene.way_out(scene.rule()) as way_out:
        for other in ("evil.test:443", "169.254.169.254:443", "[::1]:443", "0x7f.1:443"):
            said = await ask(way_out, other, b"")
            assert said.split(b" ")[1] in (b"403", b"400")
        assert scene.looked_up == []


async def test_the_host_in_a_tunnel_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    """What a request says of its host is not passed on: one host could be asked for another."""
    async with egress_scene(tmp_path) as scene, scene.way_out(scene.rule()) as way_out:
        await ask(way_out, where(scene), b"GET /x HTTP/1.1\r\nHost: internal.example.org\r\n\r\n")
        assert "internal.example.org" not in scene.host.heard[0]


async def test_a_key_is_put_in_and_never_comes_back(tmp_path: Path) -> None:
    async with egress_scene(tmp_path) as scene:
        scene.keys([where(scene)])
        rule = scene.rule(secrets=("API_KEY",))
        async with scene.way_out(rule, secrets=["API_KEY"]) as way_out:
            told = way_out.told["API_KEY"]
            assert KEY not in told
            basic = base64.b64encode(f"ada:{told}".encode()).decode()
            asked = get(
                scene, f"/x?key={told}", f"X-Key: Bearer {told}", f"Authorization: Basic {basic}"
            )
            said = await ask(way_out, where(scene), asked)
            [heard] = scene.host.heard
            real = base64.b64encode(f"ada:{KEY}".encode()).decode()
            assert f"GET /x?key={KEY} HTTP" in heard
            assert f"X-Key: Bearer {KEY}\r\n" in heard
            assert f"Authorization: Basic {real}\r\n" in heard
            assert told not in heard
            assert said.startswith(b"HTTP/1.1 200 ")
            assert KEY.encode() not in said
            assert real.encode() not in said
            [(_, _, outcome, facts)] = await scene.noted()
            assert (outcome, facts["keys"]) == ("allowed", {"API_KEY"})
            assert facts["paths"] == {"/x"}  # no query: it has the placeholder


async def test_a_key_is_put_into_plain_http_where_a_rule_says_so(tmp_path: Path) -> None:
    async with egress_scene(tmp_path, tls=False) as scene:
        plain = f"http://{where(scene)}"
        scene.keys([plain])
        async with scene.way_out(
            NetworkRule(plain, secrets=("API_KEY",)), secrets=["API_KEY"]
        ) as way_out:
            told = way_out.told["API_KEY"]
            asked = f"GET {plain}/x HTTP/1.1\r\nHost: a\r\nX-Key: {told}\r\n\r\n".encode()
            said = await ask(way_out, "", asked, tls=False)
            assert f"X-Key: {KEY}" in scene.host.heard[0]
            assert said.startswith(b"HTTP/1.1 200 ")
            assert KEY.encode() not in said


async def test_a_key_goes_nowhere_but_where_rule_and_operator_agree(tmp_path: Path) -> None:
    async with egress_scene(tmp_path) as scene:
        scene.keys(["other.example.org"])
        with_key, without = scene.rule(secrets=("API_KEY",)), scene.rule()
        for rule, words in ((with_key, b"is not for"), (without, b"does not name the key")):
            async with scene.way_out(rule, secrets=["API_KEY"]) as way_out:
                asked = get(scene, "/x", f"X-Key: {way_out.told['API_KEY']}")
                said = await ask(way_out, where(scene), asked)
                assert said.startswith(b"HTTP/1.1 403 ")
                assert words in said
        assert scene.host.heard == []


async def test_a_changed_key_holds_at_once(tmp_path: Path) -> None:
    async with egress_scene(tmp_path) as scene:
        scene.keys([where(scene)])
        rule = scene.rule(secrets=("API_KEY",))
        async with scene.way_out(rule, secrets=["API_KEY"]) as way_out:
            scene.keys([where(scene)], API_KEY="another-key-of-today")
            await ask(way_out, where(scene), get(scene, "/", f"X-Key: {way_out.told['API_KEY']}"))
            assert "X-Key: another-key-of-today" in scene.host.heard[0]


async def test_a_compressed_answer_is_no_way_for_a_key_to_come_back(tmp_path: Path) -> None:
    async with egress_scene(tmp_path) as scene:
        scene.keys([where(scene)])
        scene.host.answers["/zip"] = (
            b"HTTP/1.1 200 OK\r\ncontent-Encoding:  gzip\r\nContent-Length: 2\r\n\r\nxx"
        )
        rule = scene.rule(secrets=("API_KEY",))
        async with scene.way_out(rule, secrets=["API_KEY"]) as way_out:
            asked = get(scene, "/zip", f"X: {way_out.told['API_KEY']}", "Accept-Encoding: gzip")
            said = await ask(way_out, where(scene), asked)
            assert "Accept-Encoding: identity" in scene.host.heard[0]
            assert said.startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (None, 0o600, "not there"),
        ("secrets = 1", 0o600, "secrets"),
        ("[secrets.API_KEY", 0o600, "TOML"),
        ('[secrets.API_KEY]\nvalue = "sk-0123456789"\nhosts = ["a.b"]', 0o644, "chmod 600"),
        ('[secrets.API_KEY]\nvalue = "short"\nhosts = ["a.b"]', 0o600, "8 or more"),
        ('[secrets.API_KEY]\nvalue = "two words of it"\nhosts = ["a.b"]', 0o600, "8 or more"),
        ('[secrets.API_KEY]\nvalue = "sk-0123456789"\nhosts = []', 0o600, "hosts"),
        ('[secrets.API_KEY]\nvalue = "sk-0123456789"\nhosts = ["*"]', 0o600, "hosts"),
        ('[secrets.API_KEY]\nhosts = ["a.b"]', 0o600, "value_file"),
    ],
)
async def test_a_key_that_cannot_be_used_is_told_before_a_tool_runs(
    tmp_path: Path, text: str | None, mode: int, words: str
) -> None:
    async with egress_scene(tmp_path) as scene:
        if text is not None:
            scene.secrets.write_text(text)
            scene.secrets.chmod(mode)
        with pytest.raises(ToolUnavailable) as caught:
            async with scene.way_out(scene.rule(), secrets=["API_KEY"]):
                pass
        assert words in str(caught.value)
        assert "sk-0123456789" not in str(caught.value)


async def test_a_redirection_is_another_request(tmp_path: Path) -> None:
    async with egress_scene(tmp_path) as scene:
        scene.host.answers["/go"] = (
            b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest\r\n"
            b"Content-Length: 0\r\n\r\n"
        )
        async with scene.way_out(scene.rule()) as way_out:
            said = await ask(way_out, where(scene), get(scene, "/go"))
            assert b"302 Found" in said
            assert scene.looked_up == [scene.host.name]
            asked = b"GET http://169.254.169.254/latest HTTP/1.1\r\nHost: a\r\n\r\n"
            assert b" 403 " in await ask(way_out, "", asked, tls=False)
        assert len(scene.host.heard) == 1


@pytest.mark.parametrize(
    "answers",
    [
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::a9fe:a9fe"],
        ["93.184.216.34", "192.168.1.1"],  # one of them is enough
    ],
)
async def test_a_name_that_leads_into_a_private_network_is_refused(
    tmp_path: Path, answers: list[str]
) -> None:
    async with egress_scene(tmp_path) as scene:
        scene.names["inside.example.org"] = answers
        async with scene.way_out(NetworkRule("*.example.org")) as way_out:
            said = await ask(
                way_out, "inside.example.org", b"GET / HTTP/1.1\r\nHost: inside.example.org\r\n\r\n"
            )
            assert said.startswith(b"HTTP/1.1 403 ")
            assert b"not an address of the internet" in said


async def test_a_name_is_looked_up_once_for_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebinding: what was looked up and checked is what is called, by its number."""
    called: list[str] = []
    connect = asyncio.open_connection

    async def noting(host: str, *rest: object, **more: object) -> addresses.Streams:
        called.append(host)
        return await connect(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "open_connection", noting)
    async with egress_scene(tmp_path) as scene, scene.way_out(scene.rule()) as way_out:
        await ask(way_out, where(scene), get(scene, "/"))
        assert scene.looked_up == [scene.host.name]
        assert called == ["127.0.0.1"]


async def test_a_host_with_another_certificate_is_not_spoken_to(tmp_path: Path) -> None:
    async with egress_scene(tmp_path) as scene:
        scene.names["other.example.org"] = ["127.0.0.1"]
        other = f"other.example.org:{scene.host.port}"
        async with scene.way_out(NetworkRule(other)) as way_out:
            said = await ask(way_out, other, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert said.startswith(b"HTTP/1.1 502 ")
            assert scene.host.heard == []


async def test_bodies_pass_by_length_and_in_chunks(tmp_path: Path) -> None:
    rule = {"methods": ("POST",)}
    async with egress_scene(tmp_path) as scene, scene.way_out(scene.rule(**rule)) as way_out:
        length = get(scene, "/", "Content-Length: 5", method="POST") + b"hello"
        assert b"hello" in await ask(way_out, where(scene), length)
        chunks = get(scene, "/", "Transfer-Encoding: chunked", method="POST")
        chunks += b"5;name=value\r\nhello\r\n0\r\nTrailer: x\r\n\r\n"
        said = await ask(way_out, where(scene), chunks)
        assert said.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: xchunked"],
        ["Content-Length: +5"],
        ["Content-Length : 5"],
        ["X: a\nGET /admin HTTP/1.1"],
        [" folded: yes"],
        ["no colon"],
    ],
)
async def test_a_request_that_can_be_read_in_two_ways_is_refused(
    tmp_path: Path, headers: list[str]
) -> None:
    async with egress_scene(tmp_path) as scene, scene.way_out(scene.rule()) as way_out:
        said = await ask(way_out, where(scene), get(scene, "/", *headers) + b"hello")
        assert said.startswith(b"HTTP/1.1 400 ")
        assert scene.host.heard == []


async def test_a_second_request_of_a_connection_is_not_passed_on(tmp_path: Path) -> None:
    async with (
        egress_scene(tmp_path) as scene,
        scene.way_out(scene.rule(paths=("/v1",))) as way_out,
    ):
        await ask(way_out, where(scene), get(scene, "/v1") + get(scene, "/admin"))
        assert len(scene.host.heard) == 1
        assert "/admin" not in scene.host.heard[0]


async def test_headers_that_make_another_request_of_one_are_not_passed_on(tmp_path: Path) -> None:
    async with egress_scene(tmp_path) as scene, scene.way_out(scene.rule()) as way_out:
        more = [
            "X-HTTP-Method-Override: DELETE",
            "Upgrade: websocket",
            "Connection: X-Own, Upgrade",
        ]
        await ask(
            way_out, where(scene), get(scene, "/", *more, "X-Own: 1", "Proxy-Authorization: a")
        )
        heard = scene.host.heard[0].lower()
        assert "override" not in heard
        assert "upgrade" not in heard
        assert "x-own" not in heard
        assert "proxy-" not in heard


async def test_what_was_asked_is_in_the_audit_log(tmp_path: Path, database_url: str) -> None:
    store = Store(database_url, name="egress-test", audit_key=AUDIT_KEY)
    written = AuditWriter(lambda: store)
    try:
        async with egress_scene(tmp_path) as scene, scene.way_out(scene.rule()) as way_out:
            for path in ("/a", "/b?key=x"):
                await ask(way_out, where(scene), get(scene, path))
            await ask(way_out, where(scene), get(scene, "/a", method="DELETE"))
            await scene.noted()
            await written.write(scene.lines)
        async with store.as_steward() as cursor:
            await cursor.execute(
                "SELECT tenant, actor, object, outcome, detail FROM audit "
                "WHERE action = 'tool.egress' ORDER BY seq"
            )
            allowed, refused = await cursor.fetchall()
        assert (allowed.tenant, allowed.actor, allowed.outcome) == ("acme", "ada", "done")
        assert allowed.object == f"https://{where(scene)}"
        assert allowed.detail["requests"] == 2
        assert allowed.detail["paths"] == ["/a", "/b"]
        assert (refused.outcome, refused.detail["method"]) == ("denied", "DELETE")
        assert "DELETE" in refused.detail["why"]
    finally:
        await store.aclose()


async def test_lines_that_cannot_be_written_are_kept(tmp_path: Path) -> None:
    told: list[EgressLine] = []
    down = [True]

    async def write(lines: list[EgressLine]) -> None:
        if down:
            log.note(asked, "/later", set())
            raise DatabaseUnavailable("it is away")
        told.extend(lines)

    log = EgressLog(write)
    asked = Asked(OWNER, "me/fetch", "", "https://a.b", "GET", "allowed")
    log.note(asked, "/first", {"KEY"})
    with pytest.raises(DatabaseUnavailable):
        await log.step()
    down.clear()
    await log.step()
    [line] = told
    assert (line.requests, line.paths, line.keys) == (2, {"/first", "/later"}, {"KEY"})
