"""Decisions in a real browser: what waits is seen, decided, and seen to finish."""

import pytest
from playwright.sync_api import Browser, expect

from tests.api_scene import ACME, ApiScene
from tests.integration.test_api_views import ended
from tests.integration.test_page_decisions import asked_to_delete
from tests.page_scene import NARROW, WIDE, Reader, Scheme, findings, visit


def test_a_parked_delete_is_approved_and_another_denied(api: ApiScene, browser: Browser) -> None:
    with (
        api.client(api.token()) as agent,
        visit(browser, api, api.operator, "/approvals") as page,
    ):
        first = asked_to_delete(agent, "/of-the-browser.md")
        row = page.get_by_role("row").filter(has_text="of-the-browser.md")
        row.get_by_role("link", name="of-the-browser.md").click()
        expect(page.get_by_role("region", name="Arguments")).to_contain_text("of-the-browser.md")
        page.get_by_role("button", name="Approve").click()
        expect(page.get_by_text("What it allowed has run")).to_be_visible()
        done = agent.get(f"/v1/syscalls/{first['syscall_id']}/wait", params={"wait_s": 10})
        assert done.json()["state"] == "finished"

        second = asked_to_delete(agent, "/kept-by-the-browser.md")
        page.goto(f"{api.url}/approvals/{second['id']}")
        page.get_by_label("Reason").fill("not today")
        page.get_by_role("button", name="Deny").click()
        expect(page.locator(".state.denied")).to_be_visible()
        answer = agent.get(f"/v1/syscalls/{second['syscall_id']}/wait", params={"wait_s": 10})
        assert "not today" in answer.json()["error"]["message"]


def test_the_policy_is_changed_by_the_keyboard(api: ApiScene, browser: Browser) -> None:
    with api.client(api.operator) as client:
        before = client.get("/v1/policy").json()["storage"]
        try:
            with visit(browser, api, api.operator, "/policy") as page:
                form = page.get_by_role("form", name="storage")
                form.get_by_label("Policy").select_option("priority")
                form.get_by_role("button").focus()
                page.keyboard.press("Enter")
                expect(form.get_by_label("Policy")).to_have_value("priority")
                expect(form).to_contain_text("Suspended for: lower scores")
            assert client.get("/v1/policy").json()["storage"]["name"] == "priority"
        finally:
            client.patch("/v1/policy", params={"module": "storage"}, json={"name": before["name"]})


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_them(
    api: ApiScene, browser: Browser, width: int, scheme: Scheme
) -> None:
    name = f"reader-{width}-{scheme}"
    with api.client(api.token(name)) as agent:
        one = asked_to_delete(agent, "/a-name-of-200-" + "n" * 190)
        ended(agent, {"type": "access.group_create", "group": f"group-of-{name}"})
    views = (
        "/approvals",
        f"/approvals/{one['id']}",
        "/agents",
        f"/agents/{ACME}/{name}",
        "/groups",
        "/quotas",
        "/policy",
        "/audit",
    )
    with visit(browser, api, api.operator, "/approvals", Reader(width, scheme)) as page:
        for path in views:
            page.goto(f"{api.url}{path}")
            assert findings(page) == [], path
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{path} is {wide} wide"


def test_all_of_it_works_without_scripts(api: ApiScene, browser: Browser) -> None:
    with (
        api.client(api.token()) as agent,
        visit(browser, api, api.operator, "/approvals", Reader(scripts=False)) as page,
    ):
        one = asked_to_delete(agent, "/plain.md")
        page.goto(f"{api.url}/approvals/{one['id']}")
        page.get_by_role("button", name="Deny").click()
        expect(page.locator(".state.denied")).to_be_visible()
