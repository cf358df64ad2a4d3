"""What the hub says of a file, asked by the hub's own client.

So its mirrors (HF_ENDPOINT), tokens (HF_TOKEN, or `hf auth login`), proxies and time limits are as
its users know them. The client takes half a second to import: this happens in here, when a file of
the hub is asked for.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

from aios_broker.contract.errors import (
    AccessDenied,
    DownloadFailed,
    InvalidConfig,
    KernelError,
    NotFound,
)
from aios_broker.process.child import KERNEL_EXTRA
from aios_local.models.address import FIELD, HubAddress, parts_of
from aios_local.models.answers import retry_after_s
from aios_local.models.remote_model import RemoteFile, RemoteModel

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata
    from huggingface_hub.hf_api import ModelInfo

SHA256 = re.compile(r"[0-9a-f]{64}\Z")
NEAR_NAMES = 6  # that are shown where a file is not there
MAX_LICENCE_CHARACTERS = 80
MOST_BYTES = 50 * 10**9  # of a file that comes over plain HTTP: constants.MAX_HTTP_DOWNLOAD_SIZE


@contextmanager
def hub_client() -> Iterator[httpx.Client]:
    """Open the client that the hub's library uses, with its proxies and certificates."""
    with _translated(None):
        from huggingface_hub import close_session, get_session  # noqa: PLC0415  see above
    try:
        yield get_session()
    finally:
        close_session()


def hub_model(address: HubAddress, revision: str | None) -> RemoteModel:
    """Ask what the hub has at an address; nothing is downloaded.

    Raises:
        NotFound: No such repository, revision or file; near names are named.
        AccessDenied: One needs a token, or has to accept terms first.
        InvalidConfig: The address names no file.
        DownloadFailed: The hub does not answer, or wants to be left alone for a while.
    """
    with _translated(address):
        from huggingface_hub import HfApi, get_token, hf_hub_url  # noqa: PLC0415

        api = HfApi(library_name="aios")
        info = api.model_info(
            address.repo_id, revision=revision, files_metadata=True, timeout=_answer_limit_s()
        )
        names = _wanted(address, [one.rfilename for one in info.siblings or ()])
        commit = info.sha or revision or "main"
        token = get_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        files = []
        for name in names:
            url = hf_hub_url(address.repo_id, name, revision=commit)
            found = api.get_hf_file_metadata(url=url)
            files.append(_remote_file(name, url, found, info, headers))
    *folders, _ = address.path.split("/")
    return RemoteModel(
        source=f"{address} at {commit[:12]}",
        folder=(address.owner, address.repo, *folders),
        files=tuple(files),
        licence=_licence(info),
    )


def _answer_limit_s() -> float:
    from huggingface_hub import constants  # noqa: PLC0415

    return constants.HF_HUB_ETAG_TIMEOUT


def _remote_file(
    name: str, url: str, found: "HfFileMetadata", info: "ModelInfo", headers: dict[str, str]
) -> RemoteFile:
    sibling = next(one for one in info.siblings or () if one.rfilename == name)
    listed = sibling.lfs.sha256 if sibling.lfs is not None else ""
    published = {one for one in (listed, found.etag or "") if SHA256.match(one)}
    if len(published) > 1:
        raise DownloadFailed(
            f"the hub names two checksums of {name}: {', '.join(sorted(published))}",
            remedy="ask again in a minute; see whether HF_ENDPOINT is a mirror that lags behind",
        )
    size_bytes = found.size if found.size is not None else sibling.size
    if size_bytes is not None and size_bytes > MOST_BYTES:
        raise InvalidConfig(
            f"{name} has more than {MOST_BYTES / 1e9:.0f} GB: the hub hands those out otherwise",
            field=FIELD,
            remedy="fetch it with `hf download` (and hf_xet), then `aios cores add NAME --gguf`",
        )
    return RemoteFile(
        name=name.rpartition("/")[2],
        url=url,
        size_bytes=size_bytes,
        sha256=next(iter(published), None),
        headers=headers,
    )


def _wanted(address: HubAddress, there: Sequence[str]) -> list[str]:
    """Return the files to fetch: the one that is named, or all parts that it is one of."""
    ours = [name for name in there if name.lower().endswith(".gguf")]
    if not address.path:
        shown = ", ".join(ours[:NEAR_NAMES]) or "it has no GGUF file"
        more = f" and {len(ours) - NEAR_NAMES} more" if len(ours) > NEAR_NAMES else ""
        raise InvalidConfig(
            "names a repository and no file of it", field=FIELD, remedy=f"it has {shown}{more}"
        )
    wanted = parts_of(address.path)
    missing = [name for name in wanted if name not in there]
    if not missing:
        return wanted
    near = difflib.get_close_matches(missing[0], ours, n=NEAR_NAMES, cutoff=0.4) or ours
    raise NotFound(
        f"{address.repo_id} has no file {missing[0]}",
        field=FIELD,
        remedy=f"it has {', '.join(near[:NEAR_NAMES])}" if near else "it has no GGUF file",
    )


def _licence(info: "ModelInfo") -> str | None:
    """Return what the model's card says, on one line: it is somebody else's text."""
    card = info.card_data
    found = (card.license_name or card.license) if card is not None else None
    tags = (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:"))
    said = str(found or next(tags, ""))
    plain = "".join(one if one.isprintable() else " " for one in said).strip()
    return plain[:MAX_LICENCE_CHARACTERS] or None


@contextmanager
def _translated(address: HubAddress | None) -> Iterator[None]:
    """Let what the hub's client raises be an error that says what to do."""
    try:
        from huggingface_hub import constants, errors  # noqa: PLC0415
    except ImportError as error:
        raise InvalidConfig(
            "the hub's client is not installed", field="huggingface_hub", remedy=KERNEL_EXTRA
        ) from error
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    except KernelError:
        raise
    except errors.HfHubHTTPError as error:
        raise _of_answer(address, error) from error
    except errors.OfflineModeIsEnabled as error:
        raise DownloadFailed("HF_HUB_OFFLINE is set", remedy="unset it") from error
    except errors.HFValidationError as error:
        raise InvalidConfig(str(error), field=FIELD, remedy="copy it again") from error
    except httpx.HTTPError as error:
        raise DownloadFailed(
            f"the hub does not answer: {str(error) or type(error).__name__}",
            remedy="see HF_ENDPOINT, HTTPS_PROXY, and whether this machine reaches it",
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DownloadFailed(
            f"what answers is no hub ({type(error).__name__})", remedy="see HF_ENDPOINT"
        ) from error


def _of_answer(address: HubAddress | None, error: Exception) -> KernelError:
    """Return the error that an answer of the hub means."""
    from huggingface_hub import errors  # noqa: PLC0415

    assert isinstance(error, errors.HfHubHTTPError)
    status = error.response.status_code
    repo = address.repo_id if address is not None else "it"
    if isinstance(error, errors.GatedRepoError) or status == httpx.codes.FORBIDDEN:
        return AccessDenied(
            f"{repo} is open to those alone who have accepted its terms",
            field="HF_TOKEN",
            remedy="accept them on its page of the hub, and set HF_TOKEN to a token of yours",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFound(
            f"{repo} has no such revision",
            field="--revision",
            remedy="name a branch, a tag or a commit of it",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotFound(
            f"the hub has no repository {repo}, or hides it",
            field=FIELD,
            remedy="check its name; for a private one set HF_TOKEN to a token that may read it",
        )
    if status == httpx.codes.UNAUTHORIZED:
        return AccessDenied("the hub refuses the token", field="HF_TOKEN", remedy="make a new one")
    if status == httpx.codes.NOT_FOUND:
        return NotFound(f"{repo} has no such file", field=FIELD, remedy="check its name")
    return DownloadFailed(
        f"the hub answers {status}",
        retry_after_s=retry_after_s(error.response),
        remedy="try again later; with HF_TOKEN more is allowed"
        if status == httpx.codes.TOO_MANY_REQUESTS
        else "try again later",
    )
