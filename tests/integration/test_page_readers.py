"""The page for all kinds of readers: by keyboard alone, behind a proxy, with a wrong clock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from playwright.sync_api import Browser, Page, expect

from aios_kernel_api.page.login import COOKIE
from tests.api_scene import ACME, ApiScene
from tests.integration.test_page_browser import CHAT
from tests.integration.test_page_decisions import asked_to_delete
from tests.page_scene import NARROW, Reader, findings, visit

TABS = 10
MANY_KEYS = 80  # more than there are places to reach by Tab on these pages


def reach(page: Page, name: str) -> None:
    """Go to a button or a link by Tab alone; what has the focus must show it."""
    for _ in range(MANY_KEYS):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "(() => { const at = document.activeElement; const look = getComputedStyle(at);"
            " return [at.innerText || at.getAttribute('aria-label') || '',"
            " look.outlineStyle, at === document.body]; })()"
        )
        text, outline, is_nothing = focused
        assert is_nothing or outline != "none", f"no focus is seen on {text!r}"
        if name in text:
            return
    pytest.fail(f"{name} is not reached by the keyboard")


def test_a_parked_delete_is_approved_by_the_keyboard_alone(api: ApiScene, browser: Browser) -> None:
    with api.client(api.token()) as agent:
        one = asked_to_delete(agent, "/by-keyboard.md")
        with visit(browser, api, api.operator, f"/approvals/{one['id']}") as page:
            reach(page, "Approve")
            page.keyboard.press("Enter")
            expect(page.get_by_text("What it allowed has run")).to_be_visible()


def test_a_program_is_cancelled_by_the_keyboard_alone(api: ApiScene, browser: Browser) -> None:
    with api.client(api.token("by-keyboard")) as agent:
        agent.post("/v1/syscalls", json={"body": CHAT, "program": "typed"})
        with visit(browser, api, api.operator, f"/?agent=by-keyboard&tenant={ACME}") as page:
            expect(page.get_by_role("row").filter(has_text="typed")).to_contain_text("running")
            reach(page, "Tick typed")
            page.keyboard.press("Space")
            reach(page, "Cancel those")
            page.keyboard.press("Enter")
            expect(page.get_by_role("heading", name="Cancel: 1 program?")).to_be_visible()
            reach(page, "Cancel: 1 syscall")
            page.keyboard.press("Enter")
            expect(page.get_by_role("heading", name="1 of 1 syscall cancelled")).to_be_visible()


@pytest.mark.slow
def test_ten_tabs_of_one_login_all_follow(api: ApiScene, browser: Browser) -> None:
    context = browser.new_context()
    context.add_cookies([{"name": COOKIE, "value": api.operator, "url": api.url}])
    try:
        pages = [context.new_page() for _ in range(TABS)]
        for page in pages:
            page.goto(f"{api.url}/?agent=in-ten-tabs&tenant={ACME}")
        with api.client(api.token("in-ten-tabs")) as agent:
            agent.post(
                "/v1/syscalls", json={"body": {"type": "tool.echo"}, "program": "everywhere"}
            )
            for page in pages:
                page.bring_to_front()
                expect(page.get_by_role("row").filter(has_text="everywhere")).to_be_visible()
    finally:
        context.close()


def test_a_tab_without_a_stream_of_its_own_asks_instead(api: ApiScene, browser: Browser) -> None:
    """By HTTP/1.1 a browser opens six connections to a host, so only three tabs have a stream."""
    context = browser.new_context()
    context.add_cookies([{"name": COOKIE, "value": api.operator, "url": api.url}])
    where = f"{api.url}/?agent=in-a-fourth-tab&tenant={ACME}"
    try:
        *streaming, fourth = [context.new_page() for _ in range(4)]
        for page in streaming:
            with page.expect_request("**/live?*"):
                page.goto(where)
        with fourth.expect_request("**/parts?*"):
            fourth.goto(where)
        with api.client(api.token("in-a-fourth-tab")) as agent:
            agent.post("/v1/syscalls", json={"body": {"type": "tool.echo"}, "program": "there"})
            for page in (fourth, streaming[0]):
                expect(page.get_by_role("row").filter(has_text="there")).to_be_visible()
        with fourth.expect_request("**/live?*"):  # a place is free again
            streaming[0].close()
            fourth.reload()
    finally:
        context.close()


def test_what_is_held_back_on_the_way_is_asked_for_instead(api: ApiScene, browser: Browser) -> None:
    with visit(browser, api, api.operator, "/login") as page:
        page.route("**/live?*", lambda _: None)  # nothing of a stream ever comes
        with page.expect_request("**/parts?*"):
            page.goto(f"{api.url}/?agent=held-back&tenant={ACME}")
        with api.client(api.token("held-back")) as agent:
            agent.post("/v1/syscalls", json={"body": {"type": "tool.echo"}, "program": "asked"})
        expect(page.get_by_role("row").filter(has_text="asked")).to_be_visible()


def test_two_tabs_follow_the_slots_and_a_third_says_why_it_does_not(
    api: ApiScene, browser: Browser
) -> None:
    context = browser.new_context()
    context.add_cookies([{"name": COOKIE, "value": api.operator, "url": api.url}])
    try:
        pages = [context.new_page() for _ in range(3)]
        for page in pages[:2]:
            page.goto(f"{api.url}/slots")
            expect(page.locator("#charts-now")).to_contain_text("running")
        third = pages[2]
        third.goto(f"{api.url}/slots")
        expect(third.get_by_text("Two other tabs")).to_be_visible()
        pages[0].close()
        expect(third.locator("#charts-now")).to_contain_text("running")
        expect(third.get_by_text("Two other tabs")).to_be_hidden()
    finally:
        context.close()


def test_the_clock_of_the_browser_does_not_matter(api: ApiScene, browser: Browser) -> None:
    with visit(browser, api, api.operator, "/?agent=wrong-clock&tenant=acme") as page:
        page.clock.install(time="1999-12-31T23:59:59")
        page.reload()
        with api.client(api.token("wrong-clock")) as agent:
            agent.post("/v1/syscalls", json={"body": {"type": "tool.echo"}, "program": "on-time"})
        row = page.get_by_role("row").filter(has_text="on-time")
        expect(row).to_be_visible()
        expect(row).to_contain_text("s ago")


def test_names_of_the_greatest_length_fit_a_narrow_screen(api: ApiScene, browser: Browser) -> None:
    agent, program = "a" * 128, "p" * 128
    with api.client(api.token(agent)) as client:
        client.post("/v1/syscalls", json={"body": {"type": "tool.echo"}, "program": program})
    where = f"/?agent={agent}&tenant={ACME}"
    with visit(browser, api, api.operator, where, Reader(width=NARROW)) as page:
        expect(page.get_by_role("row").filter(has_text=program)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW
        assert findings(page) == []


class BufferingProxy:
    """A proxy that passes an answer on only when it is whole: a stream never is."""

    def __init__(self, url: str) -> None:
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._ends: list[asyncio.StreamWriter] = []
        self.url = ""

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port)
        self._ends += [back, writer]
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            kept = [line for line in head[1:] if not line.lower().startswith(b"connection")]
            back.write(b"\r\n".join([head[0], b"connection: close", *kept]))
            writer.write(await there.read(-1))  # all of it, or nothing
            await writer.drain()
        finally:
            for one in (back, writer):
                one.close()
                with suppress(ConnectionError):
                    await one.wait_closed()

    async def _close(self) -> None:
        self._server.close()
        for one in self._ends:  # what nobody reads any more is not waited for
            one.transport.abort()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*rest, return_exceptions=True)

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve for the length of a block; yield the address."""
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
            yield self.url
        finally:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


@pytest.mark.slow
def test_behind_a_proxy_that_holds_streams_back_it_asks_instead(
    api: ApiScene, browser: Browser
) -> None:
    with BufferingProxy(api.url).running() as url, api.client(api.token("behind-proxy")) as agent:
        context = browser.new_context()
        try:
            context.add_cookies([{"name": COOKIE, "value": api.operator, "url": url}])
            page = context.new_page()
            with page.expect_request("**/parts?*", timeout=30_000):
                page.goto(f"{url}/?agent=behind-proxy&tenant={ACME}")
            agent.post("/v1/syscalls", json={"body": {"type": "tool.echo"}, "program": "asked-for"})
            expect(page.get_by_role("row").filter(has_text="asked-for")).to_be_visible()
            page.goto(f"{url}/slots")
            expect(page.get_by_text("holds its stream back")).to_be_visible()
        finally:
            context.close()
