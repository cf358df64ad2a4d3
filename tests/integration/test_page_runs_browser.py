"""A program and the slots in a real browser: they move, keys work, axe has nothing to say."""

import pytest
from playwright.sync_api import Browser, expect

from tests.api_scene import ApiScene
from tests.page_scene import NARROW, WIDE, Reader, Scheme, findings, visit

CHAT: dict[str, object] = {
    "type": "llm.chat",
    "messages": [{"role": "user", "content": "Go on."}],
    "max_tokens": 16_000,
}


def test_slices_move_and_lead_to_their_program(api: ApiScene, browser: Browser) -> None:
    with api.client(api.token("drawn")) as client:
        asked = client.post("/v1/syscalls", json={"body": CHAT, "program": "picture"}).json()["id"]
        with visit(browser, api, api.operator, "/slots") as page:
            canvas = page.locator("#gantt")
            expect(page.locator("#charts-now")).to_contain_text("1 running")
            drawn = canvas.evaluate("canvas => canvas.toDataURL()")
            page.wait_for_function(
                "before => document.getElementById('gantt').toDataURL() !== before", arg=drawn
            )
            canvas.focus()
            page.keyboard.press("ArrowRight")
            expect(page.locator("#gantt-now")).to_contain_text("acme/drawn picture: llm.chat")
            page.keyboard.press("Enter")
            page.wait_for_url("**/program?*program=picture*")
            expect(page.get_by_role("heading", name="picture")).to_be_visible()
            expect(page.locator("svg .bar.running").first).to_be_attached()
            page.get_by_role("link", name="everything").click()
            expect(page.get_by_text("goes on")).to_be_visible()
        client.post(f"/v1/syscalls/{asked}/cancel")


@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "light"), (NARROW, "dark")])
def test_everybody_can_read_them(
    api: ApiScene, browser: Browser, width: int, scheme: Scheme
) -> None:
    with api.client(api.token("reader")) as client:
        client.post("/v1/syscalls?wait_s=20", json={"body": {**CHAT, "max_tokens": 8}})
    for path in (
        "/slots",
        "/program?tenant=acme&agent=reader&program=main",
        "/program?tenant=acme&agent=reader&program=main&view=timeline",
        "/program?tenant=acme&agent=reader&program=main&view=everything",
    ):
        with visit(browser, api, api.operator, path, Reader(width, scheme)) as page:
            expect(page.locator("h1")).to_be_visible()
            assert findings(page) == [], path
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
