"""A hub of model files in the tests' own process: a real HTTP server that answers as the hub does.

Its API names the files of a repository; `resolve` says size and checksum and leads to another
host, where the bytes are, in any part. `/files/` has plain addresses. What a test sets in `faults`
happens to the next answers with bytes, one each.
"""

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK_BYTES = 16_384
Fault = Callable[["_Handler", bytes], None]  # what to do instead of sending these bytes


@dataclass
class Repo:
    """A repository: its files, and who may have them."""

    files: dict[str, bytes] = field(default_factory=dict)
    licence: str | None = "apache-2.0"
    revisions: tuple[str, ...] = ("main", COMMIT)
    token: str | None = None  # that opens it, if it is gated
    private: bool = False  # nobody without the token hears of it
    sums: dict[str, str] = field(default_factory=dict)  # that are said in local of the true ones


class HubStandIn:
    """What a test sets is what it has; what was asked, it notes."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.files: dict[str, bytes] = {}  # at plain addresses
        self.validators = True  # ETags of plain files
        self.ranges = True
        self.faults: list[Fault] = []
        self.api_faults: list[int] = []  # a status each
        self.html = False  # what a captive portal answers
        self.asked: list[tuple[str, str, dict[str, str]]] = []  # method, path, headers
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self.port = self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bytes_asked(self) -> list[str]:
        """Return the Range header of each request for a file's bytes, but those of its first."""
        ranges = [
            headers.get("range", "")
            for method, path, headers in self.asked
            if method == "GET" and path.startswith(("/cdn/", "/files/"))
        ]
        return [one for one in ranges if one != "bytes=0-3"]

    @contextmanager
    def running(self) -> Iterator["HubStandIn"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


def cut_after(sent_bytes: int) -> Fault:
    """Break the line after some bytes."""

    def fault(handler: "_Handler", data: bytes) -> None:
        handler.wfile.write(data[:sent_bytes])
        handler.wfile.flush()
        handler.close_connection = True
        handler.connection.shutdown(2)

    return fault


def hold_until(event: threading.Event, sent_bytes: int) -> Fault:
    """Send some bytes, and the others when the test says so."""

    def fault(handler: "_Handler", data: bytes) -> None:
        handler.wfile.write(data[:sent_bytes])
        handler.wfile.flush()
        event.wait(30)
        handler.wfile.write(data[sent_bytes:])

    return fault


@dataclass(frozen=True)
class Refuse:
    """Answer with a status, and nothing else."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()

    def __call__(self, handler: "_Handler", data: bytes) -> None:
        raise AssertionError("it is looked at before the head is sent")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the client has gone: a test's wish
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubStandIn:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append((self.command, path, headers))
        if self.hub.html:
            return self._say(200, b"<html>Sign in</html>", {"Content-Type": "text/html"})
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._model_info(parts[2:])
        if parts[0] == "files":
            return self._bytes("/".join(parts[1:]), self.hub.files, tagged=self.hub.validators)
        if parts[0] == "cdn":
            repo = self.hub.repos["/".join(parts[1:3])]
            return self._bytes("/".join(parts[3:]), repo.files, tagged=True)
        if len(parts) > 4 and parts[2] == "resolve":
            return self._resolve(parts)
        return self._say(404)

    def _repo(self, name: str, revision: str) -> Repo | None:
        """Return a repository that is there and may be seen; else answer why not."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._has_token(repo)):
            self._say(401, headers={"X-Error-Code": "RepoNotFound"})
        elif revision not in repo.revisions:
            self._say(404, headers={"X-Error-Code": "RevisionNotFound"})
        else:
            return repo
        return None

    def _has_token(self, repo: Repo) -> bool:
        return self.headers.get("Authorization") == f"Bearer {repo.token}"

    def _model_info(self, parts: list[str]) -> None:
        if self.hub.api_faults:
            return self._say(self.hub.api_faults.pop(0), headers={"Retry-After": "90"})
        name, revision = "/".join(parts[:2]), parts[3] if len(parts) > 3 else "main"
        if (repo := self._repo(name, revision)) is None:
            return None
        siblings = [
            {
                "rfilename": path,
                "size": len(data),
                "lfs": {
                    "size": len(data),
                    "sha256": repo.sums.get(path) or sha256(data),
                    "pointerSize": 135,
                },
            }
            for path, data in repo.files.items()
        ]
        info = {
            "id": name,
            "sha": COMMIT,
            "siblings": siblings,
            "cardData": {"license": repo.licence} if repo.licence else None,
            "tags": ["gguf"],
            "gated": "manual" if repo.token else False,
        }
        return self._say(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _resolve(self, parts: list[str]) -> None:
        name, revision, path = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if (repo := self._repo(name, revision)) is None:
            return None
        if repo.token is not None and not self._has_token(repo):
            return self._say(403, headers={"X-Error-Code": "GatedRepo"})
        if path not in repo.files:
            return self._say(404, headers={"X-Error-Code": "EntryNotFound"})
        data = repo.files[path]
        found = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(data)),
            "X-Linked-Etag": f'"{repo.sums.get(path) or sha256(data)}"',
            "Location": f"http://localhost:{self.hub.port}/cdn/{name}/{path}",  # another host
        }
        return self._say(302, headers=found)

    def _bytes(self, path: str, files: dict[str, bytes], *, tagged: bool) -> None:
        if path not in files:
            return self._say(404)
        data = files[path]
        tag = f'"{sha256(data)[:16]}"'
        asked = self.headers.get("Range", "")
        probe = asked == "bytes=0-3"
        fault = self.hub.faults.pop(0) if self.hub.faults and not probe else None
        if isinstance(fault, Refuse):
            return self._say(fault.status, headers=dict(fault.headers))
        same = self.headers.get("If-Range") in {None, tag}
        headers = {"ETag": tag} if tagged else {}
        status = 200
        if asked and self.hub.ranges and same:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data)), len(data) - 1)
            if int(first) > end:
                return self._say(416, headers={"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            status, data = 206, data[int(first) : end + 1]
        self._head(status, len(data), headers)
        if fault is not None:
            return fault(self, data)
        for start in range(0, len(data), CHUNK_BYTES):
            self.wfile.write(data[start : start + CHUNK_BYTES])
        return None

    def _say(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self._head(status, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, size_bytes: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size_bytes))
        self.end_headers()
