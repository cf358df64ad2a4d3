"""What the pages load: our style and modules, and what is vendored. Nothing of another host."""

from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response

from aios_broker.contract.errors import NotFound
from aios_kernel_api.page.forms import shows
from aios_kernel_api.page.html import static_bytes, static_digest, static_path
from aios_kernel_api.page.vendored import FOLDER

TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
SAFE = {"x-content-type-options": "nosniff", "cross-origin-resource-policy": "same-origin"}
FOR_EVER = {"cache-control": "public, max-age=31536000, immutable", **SAFE}
TO_BE_ASKED = {"cache-control": "no-cache", **SAFE}


def _names(folder: Traversable, before: str) -> list[str]:
    return [
        f"{before}{each.name}"
        for each in folder.iterdir()
        if each.is_file() and each.name.rpartition(".")[2] in TYPES
    ]


def static_names() -> list[str]:
    """Return the files that are served."""
    folder = files("aios_kernel_api.page") / "static"
    return sorted([*_names(folder, ""), *_names(folder / FOLDER, f"{FOLDER}/")])


NAMES = frozenset(static_names())


async def static(request: Request) -> Response:
    """Return a file."""
    name = request.path_params["name"]
    if name not in NAMES:
        raise NotFound("there is no such file", field="path")
    headers = {"etag": f'"{static_digest(name)}"', **TO_BE_ASKED}
    if static_path(name).endswith(f"?{request.url.query}"):  # the address says what it leads to
        headers = FOR_EVER
    elif request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(static_bytes(name), 200, headers, TYPES[name.rpartition(".")[2]])


ROUTES = [shows("/static/{name:path}", static)]
