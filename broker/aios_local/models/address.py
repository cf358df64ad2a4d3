"""Where a model file is to be had: `hf:ORG/REPO/FILE`, or an address."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from aios_broker.contract.errors import InvalidConfig

HUB = "hf:"
FIELD = "address"  # the command's argument
MAX_NAME_CHARACTERS = 200  # the names beside a file are a little longer; file systems take 255
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@=,() -]*\Z")
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")  # of an organisation, a repository
SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<of>\d{5})(?P<end>\.gguf)\Z", re.I)
MAX_PARTS = 999
OWN_MACHINE = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A file of a repository of the hub; an empty `path` names none yet."""

    owner: str
    repo: str
    path: str  # within the repository, `/` between its folders
    kind: Literal["hub"] = "hub"

    @property
    def repo_id(self) -> str:
        """As the hub names the repository."""
        return f"{self.owner}/{self.repo}"

    def __str__(self) -> str:
        """Return it as it is typed."""
        return f"{HUB}{self.repo_id}/{self.path}".removesuffix("/")


@dataclass(frozen=True, slots=True)
class WebAddress:
    """A file behind an https address."""

    url: str
    host: str
    name: str  # of the file
    kind: Literal["web"] = "web"

    def __str__(self) -> str:
        """Return it without what may be secret in it: user, password, query."""
        parts = urlsplit(self.url)
        return parts._replace(
            netloc=parts.netloc.rpartition("@")[2], query="", fragment=""
        ).geturl()


Address = HubAddress | WebAddress


def parse_address(text: str, *, has_sum: bool = False) -> Address:
    """Read an address as it was typed.

    Args:
        text: It.
        has_sum: The file's checksum is known, so that it matters less who hands it over.

    Raises:
        InvalidConfig: It is none, is a page of the hub, or holds a name that cannot be a file's.
    """
    if not text.isprintable():
        raise _refused("it holds a character that cannot be printed", "copy it again")
    if text.startswith(HUB):
        return _hub_address(text.removeprefix(HUB))
    if text.startswith(("https://", "http://")):
        return _web_address(text, has_sum=has_sum)
    raise _refused(
        f"{text!r} is neither", f"write {HUB}ORG/REPO/FILE.gguf, or https://HOST/PATH/FILE.gguf"
    )


def _hub_address(text: str) -> HubAddress:
    owner, _, rest = text.partition("/")
    repo, _, path = rest.partition("/")
    for part in (owner, repo):
        if not HUB_NAME.match(part) or ".." in part:
            raise _refused(f"{part!r} is no name of the hub's", f"write {HUB}ORG/REPO/FILE.gguf")
    for part in path.split("/") if path else ():
        _check_name(part)
    if path:
        _check_suffix(path)
    return HubAddress(owner, repo, path)


def _web_address(text: str, *, has_sum: bool) -> WebAddress:
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise _refused(f"it is no address: {error}", "copy it again") from error
    if not host:
        raise _refused("it names no host", "copy it again")
    if parts.scheme == "http" and host not in OWN_MACHINE and not has_sum:
        raise _refused(
            "http:// can be changed by anybody on the way",
            "use https://, or give its checksum with --sha256",
        )
    name = unquote(PurePosixPath(parts.path).name)
    _check_name(name)
    _check_suffix(name)
    return WebAddress(text, host, name)


def _check_name(name: str) -> None:
    if not NAME.match(name) or ".." in name or len(name) > MAX_NAME_CHARACTERS:
        raise _refused(f"{name!r} cannot be a file's or a folder's name", "copy it again")


def _check_suffix(name: str) -> None:
    if not name.lower().endswith(".gguf"):
        raise _refused(
            f"{name!r} does not end in .gguf",
            "llama.cpp reads GGUF files; SGLang serves other weights: "
            "`aios cores add NAME --kind sglang --model FOLDER`",
        )


def parts_of(path: str) -> list[str]:
    """Return the names of all parts of a model, the first one first; mostly it has one.

    Raises:
        InvalidConfig: It says that it is part 0, or part 4 of 3, or one of too many.
    """
    split = SPLIT.match(path)
    if split is None:
        return [path]
    part, of = int(split["part"]), int(split["of"])
    if not 1 <= part <= of <= MAX_PARTS:
        raise _refused(f"{path!r} is part {part} of {of}", "copy it again")
    return [f"{split['stem']}-{number:05}-of-{of:05}{split['end']}" for number in range(1, of + 1)]


def core_name_of(path: str) -> str:
    """Return the name that a core of this file has where nobody gives it another."""
    name = PurePosixPath(path).name
    split = SPLIT.match(name)
    stem = split["stem"] if split else name[: -len(".gguf")]
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:64].rstrip("-._")


def _refused(why: str, remedy: str) -> InvalidConfig:
    return InvalidConfig(why, field=FIELD, remedy=remedy)
