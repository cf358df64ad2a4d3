"""Fetch a model file: it goes on where it was cut, and counts only when its checksum is right."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from aios_broker.contract.errors import (
    AccessDenied,
    AlreadyExists,
    DownloadFailed,
    InvalidConfig,
    NotFound,
)
from aios_local.models.address import FIELD, WebAddress, parts_of
from aios_local.models.answers import range_of, retry_after_s, total_bytes, validator_of
from aios_local.models.local_file import LocalFile, PartOf, sha256_of, size_text
from aios_local.models.remote_model import RemoteFile, RemoteModel

logger = logging.getLogger(__name__)

MAGIC = b"GGUF"
ANSWER_LIMIT_S = 30.0  # without a byte
TIME_LIMITS = httpx.Timeout(ANSWER_LIMIT_S, connect=10.0)
MAX_STALLS = 5  # tries that bring nothing, one after the other
MAX_TRIES = 100  # of one command
WAITS_S = (1.0, 2.0, 4.0, 8.0)  # before the next try
LONGEST_RETRY_AFTER_S = 60.0  # who wants to be left alone for longer is
RESTART = frozenset({httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE})
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})

OnBytes = Callable[[str, int, int | None], None]  # file, bytes so far, bytes in all


class _Cut(Exception):
    """The answer ended early, or there was none: try again."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class DownloadResult:
    """One file that is here."""

    path: Path
    sha256: str
    new: bool  # False: it was here already


def web_client() -> httpx.Client:
    """Return a client for plain addresses; proxies and certificates as the environment says."""
    return httpx.Client(follow_redirects=True, timeout=TIME_LIMITS)


def web_model(client: httpx.Client, address: WebAddress, sha256: str | None) -> RemoteModel:
    """Ask what is behind an address; of each file its first bytes are read.

    Raises:
        InvalidConfig: A checksum, and the model has several files.
        NotFound, AccessDenied, DownloadFailed: As `check_gguf`.
    """
    names = parts_of(address.name)
    if len(names) > 1 and sha256 is not None:
        raise InvalidConfig(
            f"{address.name} is one of {len(names)} files, and there is one checksum",
            field="--sha256",
            remedy="leave it out, and compare the .sha256 files afterwards",
        )
    files = []
    for name in names:
        url = address.url
        if name != address.name:
            path, _, query = url.partition("?")
            url = path[: -len(path.rpartition("/")[2])] + name + (f"?{query}" if query else "")
        file = RemoteFile(name=name, url=url, sha256=sha256)
        files.append(replace(file, size_bytes=check_gguf(client, file)))
    return RemoteModel(source=str(address), folder=(address.host,), files=tuple(files))


def check_gguf(client: httpx.Client, file: RemoteFile) -> int | None:
    """Read a file's first bytes; return its size, where the server says it.

    Raises:
        NotFound, AccessDenied: What its server says.
        InvalidConfig: It is no GGUF file.
        DownloadFailed: Its server does not answer.
    """
    try:
        with _asked(client, file, {"Range": f"bytes=0-{len(MAGIC) - 1}"}) as response:
            first = next(response.iter_raw(len(MAGIC)), b"")  # of a whole file, too
            _check_magic(file, first)
            return total_bytes(response)
    except httpx.InvalidURL as error:
        raise InvalidConfig(
            f"it is no address: {error}", field=FIELD, remedy="copy it again"
        ) from error
    except (_Cut, httpx.HTTPError) as error:
        raise DownloadFailed(
            f"{file.name}: {_said(error)}",
            field=FIELD,
            retry_after_s=getattr(error, "wait_s", None) or None,
            remedy="try again later; see whether this machine reaches its server",
        ) from error


@dataclass(frozen=True, slots=True)
class Download:
    """How the files of one model are fetched."""

    client: httpx.Client
    source: str  # where they are from, as it is written down
    on_bytes: OnBytes  # called as bytes come
    waits_s: Sequence[float] = WAITS_S

    def fetch(self, file: RemoteFile, local: LocalFile) -> DownloadResult:
        """Fetch a file to its place, unless it is there.

        Raises:
            AlreadyExists: Another process fetches it, or another file is there.
            DownloadFailed: It did not come, or was wrong; the message says what is kept.
            InvalidConfig: It is no GGUF file.
        """
        local.make_folder()
        with local.locked():
            if local.path.exists():
                return _here_already(file, local, self.source)
            if file.size_bytes is not None:
                local.check_room(file.size_bytes)
            self._fetch_part(file, local)
            found = sha256_of(local.part_path)
            if file.sha256 is not None and found != file.sha256:
                local.drop_part()
                raise DownloadFailed(
                    f"{file.name} has the checksum {found}, and not {file.sha256}; it was removed",
                    field="--sha256",
                    remedy="fetch it again; if it is wrong again, ask who published it",
                )
            local.settle(found, self.source)
            return DownloadResult(local.path, found, new=True)

    def _fetch_part(self, file: RemoteFile, local: LocalFile) -> None:
        """Append to the part until it is whole."""
        _drop_foreign_part(file, local, self.source)
        stalls = 0
        for _ in range(MAX_TRIES):
            before = local.part_bytes()
            if file.size_bytes is not None and before == file.size_bytes:
                return
            try:
                self._append(file, local)
            except (_Cut, httpx.HTTPError) as error:
                stalls = 0 if local.part_bytes() > before else stalls + 1
                why, wait_s = _said(error), getattr(error, "wait_s", 0.0)
            else:
                return
            if stalls >= MAX_STALLS or wait_s > LONGEST_RETRY_AFTER_S:
                break
            logger.info("%s: %s; going on at %d bytes", file.name, why, local.part_bytes())
            time.sleep(max(wait_s, self.waits_s[min(stalls, len(self.waits_s) - 1)]))
        raise DownloadFailed(
            f"{file.name}: {why}; {size_text(local.part_bytes())} of {size_text(file.size_bytes)} "
            "have come and are kept",
            retry_after_s=wait_s or None,
            remedy="the same command goes on where it ended",
        )

    def _append(self, file: RemoteFile, local: LocalFile) -> None:
        """Ask for what is missing and write it.

        Raises:
            _Cut, httpx.HTTPError: It ended early; what has come is in the part.
        """
        note, start = local.part_of(), local.part_bytes()
        asked = {"Range": f"bytes={start}-"} if start else {}
        if start and note is not None and note.validator is not None and file.sha256 is None:
            asked["If-Range"] = note.validator
        with _asked(self.client, file, asked) as response:
            if response.status_code in RESTART:
                local.drop_part()
                raise _Cut("its server has no such part of it any more")
            if not _goes_on(response, file, local, start, note):
                start = 0
                local.begin_part(PartOf(self.source, file.sha256, validator_of(response)))
            self._write(response, file, local, start)

    def _write(
        self, response: httpx.Response, file: RemoteFile, local: LocalFile, start: int
    ) -> None:
        size_bytes = _whole_size(file, response)
        so_far, head = start, MAGIC if start else b""
        self.on_bytes(file.name, so_far, size_bytes)
        with local.part_path.open("ab") as part:
            # As they come: what is gathered into larger ones is lost where the line is cut.
            for chunk in response.iter_raw():
                if len(head) < len(MAGIC):
                    head = (head + chunk)[: len(MAGIC)]
                    _check_magic(file, head, MAGIC[: len(head)])
                so_far += len(chunk)
                if size_bytes is not None and so_far > size_bytes:
                    raise _Cut("its server sends more than it said")
                part.write(chunk)
                self.on_bytes(file.name, so_far, size_bytes)
        if size_bytes is not None and so_far < size_bytes:
            raise _Cut("the line was cut")


def _here_already(file: RemoteFile, local: LocalFile, source: str) -> DownloadResult:
    kept = local.kept_sum()
    if kept is None or file.sha256 is not None:
        kept = sha256_of(local.path)
    # Without a published checksum: the one of the same address, as long as it is as long.
    same_source = local.kept_source() == source and file.size_bytes in {
        None,
        local.path.stat().st_size,
    }
    if kept == file.sha256 or (file.sha256 is None and same_source):
        return DownloadResult(local.path, kept, new=False)
    raise AlreadyExists(
        f"{local.path} is there and is another file (its checksum is {kept})",
        remedy="remove it, or move it away; where a core runs on it, that core first",
    )


def _drop_foreign_part(file: RemoteFile, local: LocalFile, source: str) -> None:
    """Drop a part that nobody can say to be of this file: with a checksum it will show."""
    note = local.part_of()
    known = note is not None and (
        note.sha256 == file.sha256
        if file.sha256 is not None
        else note.source == source and note.validator is not None and note.sha256 is None
    )
    too_long = file.size_bytes is not None and local.part_bytes() > file.size_bytes
    if not known or too_long:
        local.drop_part()


def _goes_on(
    response: httpx.Response, file: RemoteFile, local: LocalFile, start: int, note: PartOf | None
) -> bool:
    """Tell whether an answer goes on where the part ends, with the same file.

    Raises:
        _Cut: It is a part that nobody asked for.
    """
    if response.status_code != httpx.codes.PARTIAL_CONTENT:
        return False
    found = range_of(response)
    if found is None or found[0] != start:
        raise _Cut("its server sends another part than it was asked for")
    validator = validator_of(response)
    same = file.sha256 is not None or (note is not None and note.validator == validator)
    if start and not same:  # If-Range was ignored
        local.drop_part()
        raise _Cut("another file is there by now")
    return start > 0


def _whole_size(file: RemoteFile, response: httpx.Response) -> int | None:
    said = total_bytes(response)
    if said is not None and file.size_bytes is not None and said != file.size_bytes:
        raise DownloadFailed(
            f"{file.name} has {size_text(said)} now, and {size_text(file.size_bytes)} were shown",
            remedy="try again",
        )
    return said if said is not None else file.size_bytes


def _check_magic(file: RemoteFile, first: bytes, magic: bytes = MAGIC) -> None:
    if first != magic:
        raise InvalidConfig(
            f"{file.name} is no GGUF file: it begins with {first!r}",
            field=FIELD,
            remedy="see whether the address is that of the file and not of a page about it",
        )


@contextmanager
def _asked(
    client: httpx.Client, file: RemoteFile, headers: Mapping[str, str]
) -> Iterator[httpx.Response]:
    """Ask for a file.

    Raises:
        _Cut: Its server is busy.
        NotFound, AccessDenied, DownloadFailed: It refuses.
    """
    asked = {**file.headers, "Accept-Encoding": "identity", **headers}
    with client.stream("GET", file.url, headers=asked, timeout=TIME_LIMITS) as response:
        _check_way(file, response)
        status = response.status_code
        if status in TRANSIENT:
            raise _Cut(f"its server answers {status}", retry_after_s(response) or 0.0)
        if status in {httpx.codes.NOT_FOUND, httpx.codes.GONE}:
            raise NotFound(
                f"its server has no {file.name}", field=FIELD, remedy="check the address"
            )
        if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise AccessDenied(
                f"its server gives {file.name} to those alone whom it knows",
                field=FIELD,
                remedy="accept its terms on the hub's page and set HF_TOKEN; elsewhere ask its "
                "owner for an address that works",
            )
        if not response.is_success and status not in RESTART:
            raise DownloadFailed(
                f"{file.name}: its server answers {status}", remedy="check the address"
            )
        yield response


def _check_way(file: RemoteFile, response: httpx.Response) -> None:
    """Refuse to be led off https, where no checksum tells what comes."""
    way = [one.url.scheme for one in (*response.history, response)]
    if way[0] == "https" and "http" in way and file.sha256 is None:
        raise DownloadFailed(
            f"{file.name}: its server leads to an address without encryption",
            remedy="give its checksum with --sha256",
        )


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
