"""The page as people use it: by HTTP with the cookie of a login, and in a real browser.

def test_it(api: ApiScene) -> None:
with logged_in(api, api.operator) as client:
answer = send_form(client, "/programs/cancel", program="acme ada story")

def test_in_a_browser(api: ApiScene, browser: Browser) -> None:
with visit(browser, api, api.operator, "/fleet", Reader(width=NARROW)) as page:
...
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from aios_kernel_api.page.login import COOKIE
from tests.api_scene import TIMEOUT_S, ApiScene

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
WIDE, NARROW = 1280, 390
EXPECTED_MS = 20_000
Scheme = Literal["light", "dark"]
_CSRF = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


@dataclass(frozen=True, slots=True)
class Reader:
    """What somebody looks at the page with."""

    width: int = WIDE
    scheme: Scheme = "light"
    scripts: bool = True


@contextmanager
def logged_in(api: ApiScene, token: str) -> Iterator[httpx.Client]:
    """Yield a client that has logged in by the form."""
    with httpx.Client(base_url=api.url, timeout=TIMEOUT_S) as client:
        answer = client.post("/login", data={"token": token})
        assert answer.status_code == 303, answer.text
        yield client


def csrf_in(text: str) -> str:
    """Return the word that the forms of a page carry."""
    found = _CSRF.search(text)
    assert found is not None, text
    return found[1]


def send_form(client: httpx.Client, path: str, **fields: object) -> httpx.Response:
    """Send a form as the page would."""
    csrf = csrf_in(client.get("/").text)
    headers = {"origin": str(client.base_url).rstrip("/")}
    return client.post(path, data={"csrf": csrf, **fields}, headers=headers)


def chromium() -> str | None:
    """Return where a Chromium is."""
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run a headless browser for the length of a block; skip where there is none."""
    path = chromium()
    if path is None:
        pytest.skip("no Chromium is installed: `apt-get install chromium` brings one")
    with sync_playwright() as playwright:
        expect.set_options(timeout=EXPECTED_MS)  # a revoked token is noticed after 5 s
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(
    browser: Browser,
    api: ApiScene,
    token: str | None,
    path: str = "/",
    reader: Reader = Reader(),
) -> Iterator[Page]:
    """Yield a page of a person of their own; it must end without an error or a foreign request."""
    context = browser.new_context(
        viewport={"width": reader.width, "height": 844},
        color_scheme=reader.scheme,
        java_script_enabled=reader.scripts,
    )
    if token is not None:
        context.add_cookies([{"name": COOKIE, "value": token, "url": api.url}])
    page = context.new_page()
    page.set_default_timeout(15_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.extend(_complaint(message)))
    page.on("request", lambda request: wrong.extend(_foreign(request, api.url)))
    try:
        page.goto(f"{api.url}{path}")
        yield page
        assert wrong == []
    finally:
        context.close()


def _complaint(message: ConsoleMessage) -> list[str]:
    # The browser itself notes each answer that is an error: some tests want such.
    is_wrong = message.type == "error" and "Failed to load resource" not in message.text
    return [message.text] if is_wrong else []


def _foreign(request: Request, url: str) -> list[str]:
    return [] if request.url.startswith((url, "data:")) else [request.url]


def findings(page: Page) -> list[str]:
    """Return what axe finds that is serious, or worse."""
    answer = Axe().run(page).response
    return [
        f"{one['id']}: {each['html'][:200]}"
        for one in answer["violations"]
        if one["impact"] in ("serious", "critical")
        for each in one["nodes"]
    ]
