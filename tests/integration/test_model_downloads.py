"""Model files from a hub and plain addresses: cut, wrong, refused, twice at once, too large."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub import constants

from aios_broker.contract.errors import (
    AccessDenied,
    AlreadyExists,
    DownloadFailed,
    InvalidConfig,
    KernelError,
    NotFound,
)
from aios_local.models.address import HubAddress, WebAddress, parse_address
from aios_local.models.download import Download, DownloadResult, check_gguf, web_client, web_model
from aios_local.models.hub import hub_client, hub_model
from aios_local.models.local_file import LocalFile
from aios_local.models.remote_model import RemoteModel
from tests.hub_standin import HubStandIn, Refuse, Repo, cut_after, hold_until, sha256

DATA = b"GGUF" + bytes(range(256)) * 4_000  # 1 MB
CUT = 300_000
FILE = "org/repo/model-q4.gguf"


_opened = ExitStack()  # the clients of one test


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    hub = HubStandIn()
    hub.repos["org/repo"] = Repo({"model-q4.gguf": DATA, "README.md": b"words"})
    hub.files["model.gguf"] = DATA
    # The client reads its variables when it is imported; the command's tests set those.
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setenv("HF_TOKEN", "")
    with hub.running(), _opened:
        yield hub


def from_hub(text: str = FILE, revision: str | None = None) -> tuple[httpx.Client, RemoteModel]:
    address = parse_address(f"hf:{text}")
    assert isinstance(address, HubAddress)
    return _opened.enter_context(hub_client()), hub_model(address, revision)


def from_web(hub: HubStandIn, sum_: str | None = None) -> tuple[httpx.Client, RemoteModel]:
    address = parse_address(f"{hub.url}/files/model.gguf")
    assert isinstance(address, WebAddress)
    client = _opened.enter_context(web_client())
    return client, web_model(client, address, sum_)


def fetch(
    found: tuple[httpx.Client, RemoteModel],
    folder: Path,
    on_bytes: Callable[[str, int, int | None], None] = lambda *_: None,
) -> list[DownloadResult]:
    client, model = found
    download = Download(client, model.source, on_bytes, waits_s=(0.0,))
    return [download.fetch(file, LocalFile(folder / file.name)) for file in model.files]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_the_hub_says_size_sum_and_licence_before_anything_is_downloaded(hub: HubStandIn) -> None:
    _, model = from_hub()

    assert (model.size_bytes, model.licence) == (len(DATA), "apache-2.0")
    assert model.files[0].sha256 == sha256(DATA)
    assert model.folder == ("org", "repo")
    assert hub.bytes_asked() == []


@pytest.mark.parametrize("kind", ["hub", "web"])
def test_a_file_comes_with_its_checksum(kind: str, hub: HubStandIn, tmp_path: Path) -> None:
    found = from_hub() if kind == "hub" else from_web(hub)

    (fetched,) = fetch(found, tmp_path)

    assert fetched.path.read_bytes() == DATA
    assert (fetched.sha256, fetched.new) == (sha256(DATA), True)
    assert names(tmp_path) == {fetched.path.name, f"{fetched.path.name}.sha256"}
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", f"{fetched.path.name}.sha256"],
        cwd=tmp_path,
        check=False,
    )
    assert checked.returncode == 0


@pytest.mark.parametrize("kind", ["hub", "web"])
def test_what_is_here_is_not_fetched_again(kind: str, hub: HubStandIn, tmp_path: Path) -> None:
    fetch(from_hub() if kind == "hub" else from_web(hub), tmp_path)
    asked = len(hub.bytes_asked())

    (again,) = fetch(from_hub() if kind == "hub" else from_web(hub), tmp_path)

    assert (again.new, again.sha256) == (False, sha256(DATA))
    assert len(hub.bytes_asked()) == asked


@pytest.mark.parametrize("kind", ["hub", "web"])
def test_a_cut_line_goes_on_by_itself_where_it_ended(
    kind: str, hub: HubStandIn, tmp_path: Path
) -> None:
    found = from_hub() if kind == "hub" else from_web(hub)
    hub.faults = [cut_after(CUT), Refuse(503), cut_after(0), cut_after(CUT)]

    (fetched,) = fetch(found, tmp_path)

    assert fetched.path.read_bytes() == DATA
    starts = hub.bytes_asked()
    assert starts[0] == ""
    assert starts[1:] == [f"bytes={CUT}-"] * 3 + [f"bytes={2 * CUT}-"]


@pytest.mark.parametrize("kind", ["hub", "web"])
def test_after_a_bounded_number_of_tries_the_next_run_goes_on(
    kind: str, hub: HubStandIn, tmp_path: Path
) -> None:
    def found() -> tuple[httpx.Client, RemoteModel]:
        return from_hub() if kind == "hub" else from_web(hub)

    hub.faults = [cut_after(CUT), *[cut_after(0)] * 50]
    with pytest.raises(DownloadFailed, match=r"0\.\d MB|300000 bytes") as caught:
        fetch(found(), tmp_path)
    assert "are kept" in str(caught.value)
    assert len(hub.bytes_asked()) <= 10
    hub.faults.clear()

    (fetched,) = fetch(found(), tmp_path)

    assert fetched.path.read_bytes() == DATA
    assert hub.bytes_asked()[-1] == f"bytes={CUT}-"


@pytest.mark.parametrize("server", ["with ranges", "without"])
def test_a_file_that_changes_in_between_is_not_glued_together(
    server: str, hub: HubStandIn, tmp_path: Path
) -> None:
    changed = b"GGUF" + DATA[4:][::-1]
    hub.ranges = server == "with ranges"

    def change(handler: object, data: bytes) -> None:
        cut_after(CUT)(handler, data)  # type: ignore[arg-type]
        hub.files["model.gguf"] = changed

    hub.faults = [change]

    (fetched,) = fetch(from_web(hub), tmp_path)

    assert fetched.path.read_bytes() == changed
    assert fetched.sha256 == sha256(changed)


def test_without_a_validator_and_a_sum_it_starts_again(hub: HubStandIn, tmp_path: Path) -> None:
    hub.validators = False
    hub.faults = [cut_after(CUT), *[cut_after(0)] * 50]
    with pytest.raises(DownloadFailed):
        fetch(from_web(hub), tmp_path)
    hub.faults.clear()

    (fetched,) = fetch(from_web(hub), tmp_path)

    assert fetched.path.read_bytes() == DATA
    assert hub.bytes_asked()[-1] == ""


def test_a_wrong_sum_removes_what_came(hub: HubStandIn, tmp_path: Path) -> None:
    hub.repos["org/repo"].sums["model-q4.gguf"] = "0" * 64

    with pytest.raises(DownloadFailed, match="checksum") as caught:
        fetch(from_hub(), tmp_path)
    assert sha256(DATA) in str(caught.value)
    assert names(tmp_path) == set()

    with pytest.raises(DownloadFailed, match="checksum"):
        fetch(from_web(hub, "1" * 64), tmp_path)
    assert names(tmp_path) == set()


def test_a_part_of_another_file_is_not_gone_on_with(hub: HubStandIn, tmp_path: Path) -> None:
    hub.faults = [cut_after(CUT), *[cut_after(0)] * 50]
    with pytest.raises(DownloadFailed):
        fetch(from_hub(), tmp_path)
    hub.faults.clear()
    newer = b"GGUF" + bytes(len(DATA))
    hub.repos["org/repo"].files["model-q4.gguf"] = newer

    (fetched,) = fetch(from_hub(), tmp_path)

    assert fetched.path.read_bytes() == newer
    assert hub.bytes_asked()[-1] == ""


def test_another_file_in_its_place_is_left_alone(hub: HubStandIn, tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF mine")

    with pytest.raises(AlreadyExists, match="is another file"):
        fetch(from_hub(), tmp_path)

    assert (tmp_path / "model-q4.gguf").read_bytes() == b"GGUF mine"


def test_what_is_no_gguf_is_refused_by_its_first_bytes(hub: HubStandIn, tmp_path: Path) -> None:
    hub.files["model.gguf"] = b"<html>" + bytes(1_000_000)
    with pytest.raises(InvalidConfig, match=r"no GGUF file: it begins with b'<htm'"):
        from_web(hub)

    hub.repos["org/repo"].files["model-q4.gguf"] = b"PK\3\4" + bytes(1_000_000)
    client, model = from_hub()
    with pytest.raises(InvalidConfig, match="no GGUF file"):
        check_gguf(client, model.files[0])
    with pytest.raises(InvalidConfig, match="no GGUF file"):
        fetch((client, model), tmp_path)
    assert names(tmp_path) <= {".model-q4.gguf.part", ".model-q4.gguf.part.json"}
    assert not (tmp_path / "model-q4.gguf").exists()


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("org/repo/model-q8.gguf", NotFound, "it has model-q4.gguf"),
        ("org/repo", InvalidConfig, "it has model-q4.gguf"),
        ("org/nothing/model.gguf", NotFound, "no repository org/nothing"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(
    text: str, kind: type[KernelError], said: str, hub: HubStandIn
) -> None:
    with pytest.raises(kind) as caught:
        from_hub(text)
    assert said in str(caught.value)
    assert caught.value.remedy


def test_a_revision(hub: HubStandIn) -> None:
    with pytest.raises(NotFound, match="revision"):
        from_hub(FILE, "v9")
    hub.repos["org/repo"].revisions += ("v9",)
    assert from_hub(FILE, "v9")[1].size_bytes == len(DATA)


def test_a_gated_repository_wants_a_token_and_no_other_host_sees_it(
    hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["org/repo"].token = "hf_right"
    with pytest.raises(AccessDenied, match="accepted its terms") as caught:
        from_hub()
    assert caught.value.field == "HF_TOKEN"

    monkeypatch.setenv("HF_TOKEN", "hf_right")
    (fetched,) = fetch(from_hub(), tmp_path)

    assert fetched.path.read_bytes() == DATA
    elsewhere = [headers for _, path, headers in hub.asked if path.startswith("/cdn/")]
    assert elsewhere
    assert not any("authorization" in headers for headers in elsewhere)
    assert "hf_right" not in (tmp_path / "model-q4.gguf.sha256").read_text()


def test_a_private_repository_is_one_that_the_hub_hides(hub: HubStandIn) -> None:
    hub.repos["org/repo"].private = True

    with pytest.raises(NotFound, match="or hides it") as caught:
        from_hub()
    assert "HF_TOKEN" in str(caught.value.remedy)


def test_who_asks_too_much_is_told_how_long_to_wait(hub: HubStandIn, tmp_path: Path) -> None:
    hub.api_faults = [429]
    with pytest.raises(DownloadFailed, match="429") as caught:
        from_hub()
    assert caught.value.retry_after_s == 90

    found = from_hub()
    hub.faults = [cut_after(CUT), Refuse(429, (("Retry-After", "3600"),))]
    with pytest.raises(DownloadFailed, match="429") as caught:
        fetch(found, tmp_path)
    assert caught.value.retry_after_s == 3600
    assert (tmp_path / ".model-q4.gguf.part").stat().st_size == CUT


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_is_ill_is_said_to_be(status: int, hub: HubStandIn) -> None:
    hub.api_faults = [status]
    with pytest.raises(DownloadFailed, match=str(status)):
        from_hub()


def test_a_page_in_place_of_the_hub_is_noticed(hub: HubStandIn) -> None:
    hub.html = True
    with pytest.raises(DownloadFailed, match="no hub") as caught:
        from_hub()
    assert "HF_ENDPOINT" in str(caught.value.remedy)


def test_all_parts_of_a_model_come_or_none(hub: HubStandIn, tmp_path: Path) -> None:
    parts = {f"m-0000{number}-of-00003.gguf": DATA + bytes([number]) for number in (1, 2, 3)}
    hub.repos["org/repo"].files.update(parts)

    client, model = from_hub("org/repo/m-00002-of-00003.gguf")
    assert model.size_bytes == sum(len(data) for data in parts.values())
    fetched = fetch((client, model), tmp_path)
    assert [one.path.name for one in fetched] == sorted(parts)

    del hub.repos["org/repo"].files["m-00003-of-00003.gguf"]
    with pytest.raises(NotFound, match="m-00003-of-00003"):
        from_hub("org/repo/m-00001-of-00003.gguf")


def test_two_at_once_are_one_and_a_refusal(hub: HubStandIn, tmp_path: Path) -> None:
    go_on = threading.Event()
    begun = threading.Event()
    hub.faults = [hold_until(go_on, CUT)]
    found, done = from_hub(), []

    def first() -> None:
        done.extend(fetch(found, tmp_path, on_bytes=lambda *_: begun.set()))

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(10)
    with pytest.raises(AlreadyExists, match="by another process"):
        fetch(from_hub(), tmp_path)
    go_on.set()
    thread.join(30)

    assert [one.path.read_bytes() for one in done] == [DATA]


def test_too_little_room_is_refused_with_both_numbers(
    hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = from_hub()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(DATA) - 1))

    with pytest.raises(DownloadFailed, match=r"has room for 1\.0 MB, and .* needs 1\.0 MB"):
        fetch(found, tmp_path)

    assert hub.bytes_asked() == []


FULL = """
import resource, sys
from pathlib import Path
from aios_broker.contract.errors import DownloadFailed
from aios_local.models.address import parse_address
from aios_local.models.download import Download, web_client, web_model
from aios_local.models.local_file import LocalFile
url, folder = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
client = web_client()
model = web_model(client, parse_address(url), None)
try:
    download = Download(client, model.source, lambda *_: None)
    download.fetch(model.files[0], LocalFile(Path(folder, "m.gguf")))
except DownloadFailed as error:
    print(error)
"""


def test_a_file_that_may_not_grow_leaves_what_can_be_gone_on_with(
    hub: HubStandIn, tmp_path: Path
) -> None:
    url = f"{hub.url}/files/model.gguf"
    done = subprocess.run(
        [sys.executable, "-P", "-c", FULL, url, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "is full" in done.stdout, done.stderr
    assert (tmp_path / ".m.gguf.part").stat().st_size == 300_000
    client, model = from_web(hub)
    download = Download(client, model.source, lambda *_: None)
    fetched = download.fetch(model.files[0], LocalFile(tmp_path / "m.gguf"))
    assert fetched.path.read_bytes() == DATA
    assert hub.bytes_asked()[-1] == "bytes=300000-"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(hub: HubStandIn, small_disk: Path) -> None:
    with pytest.raises(DownloadFailed, match="has room for"):
        fetch(from_hub(), small_disk)

    client, model = from_hub()
    unsaid = model.files[0].__class__(name="m.gguf", url=f"{hub.url}/files/model.gguf")
    (small_disk / "other").write_bytes(bytes(200_000))
    with pytest.raises(DownloadFailed, match="is full"):
        Download(client, "there", lambda *_: None).fetch(unsaid, LocalFile(small_disk / "m.gguf"))
    assert not (small_disk / "m.gguf").exists()


def test_a_folder_that_cannot_be_made_is_named(hub: HubStandIn, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidConfig, match="cannot be made") as caught:
        fetch(from_hub(), tmp_path / "file" / "models")
    assert caught.value.field == "AIOS_MODELS"


def test_a_server_that_is_not_there_is_said_to_be(hub: HubStandIn) -> None:
    gone = HubStandIn()
    gone._server.server_close()
    with pytest.raises(DownloadFailed, match=r"model\.gguf"):
        from_web(gone)
    assert hub.bytes_asked() == []


def test_sums_that_are_no_text_count_as_none(tmp_path: Path) -> None:
    local = LocalFile(tmp_path / "m.gguf")
    local.path.write_bytes(b"GGUF")
    local.sum_path.write_bytes(b"\xff")

    assert local.kept_sum() is None
    assert local.kept_source() is None
