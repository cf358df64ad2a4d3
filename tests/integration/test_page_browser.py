"""The page in a real browser: it follows the kernel; narrow and wide, light and dark."""

import pytest
from playwright.sync_api import Browser, expect

from tests.api_scene import ApiScene
from tests.page_scene import NARROW, WIDE, Reader, Scheme, findings, visit

CHAT: dict[str, object] = {
    "type": "llm.chat",
    "messages": [{"role": "user", "content": "Go on."}],
    "max_tokens": 16_000,
}


def test_a_person_logs_in_and_out(api: ApiScene, browser: Browser) -> None:
    with visit(browser, api, None, "/fleet") as page:
        page.get_by_label("Token").fill(api.operator)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Queues and workers")).to_be_visible()
        assert page.url == f"{api.url}/fleet"
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Token")).to_be_visible()


def test_a_program_appears_runs_and_is_cancelled(api: ApiScene, browser: Browser) -> None:
    with visit(browser, api, api.operator, "/?agent=in-browser&tenant=acme") as page:
        expect(page.get_by_text("There are none")).to_be_visible()
        with api.client(api.token("in-browser")) as client:
            asked = client.post("/v1/syscalls", json={"body": CHAT, "program": "seen"}).json()["id"]
            row = page.get_by_role("row").filter(has_text="seen")
            expect(row).to_contain_text("running")
            row.get_by_role("checkbox").check()
            tokens = row.locator("td").nth(7)
            before = tokens.inner_text()
            expect(tokens).not_to_have_text(before)  # it was made anew meanwhile,
            assert row.get_by_role("checkbox").is_checked()  # and the tick has stayed
            page.get_by_role("button", name="Cancel those").click()
            expect(page.get_by_text("1 syscall.", exact=True)).to_be_visible()
            page.get_by_role("button", name="Cancel: 1 syscall").click()
            page.get_by_role("link", name="Back to the programs").click()
            expect(page.get_by_role("row").filter(has_text="seen")).not_to_contain_text("running")
            answer = client.get(f"/v1/syscalls/{asked}/wait", params={"wait_s": 10})
            assert answer.json()["error"]["code"] == "cancelled"


def test_filters_stand_in_the_address(api: ApiScene, browser: Browser) -> None:
    with visit(browser, api, api.operator) as page:
        page.get_by_label("State").select_option("failed")
        page.wait_for_url("**/?*state=failed*")
        expect(page.get_by_label("State")).to_have_value("failed")
        page.go_back()
        expect(page.get_by_label("State")).to_have_value("")


def test_a_hidden_tab_asks_for_nothing(api: ApiScene, browser: Browser) -> None:
    with visit(browser, api, api.operator) as page:
        streams: list[str] = []
        page.on("request", lambda request: streams.append(request.url))
        page.wait_for_function("performance.getEntriesByType('resource').length > 3")
        page.evaluate(
            "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        streams.clear()
        with pytest.raises(Exception, match="Timeout"):
            page.wait_for_event("request", timeout=3_000)
        with page.expect_request("**/live?*"):
            page.evaluate(
                "Object.defineProperty(document, 'hidden', {value: false, configurable: true});"
                "document.dispatchEvent(new Event('visibilitychange'))"
            )


def test_a_token_that_is_revoked_ends_the_view(api: ApiScene, browser: Browser) -> None:
    token = api.token("browser-ends")
    with visit(browser, api, token) as page:
        expect(page.get_by_role("heading", name="Programs")).to_be_visible()
        api.revoke("browser-ends")
        expect(page.get_by_label("Token")).to_be_visible()


def test_a_token_that_expires_asks_for_another_and_goes_on(api: ApiScene, browser: Browser) -> None:
    token = api.token("browser-expires", ttl_s=4)
    view = "/?state=failed&program=a"
    with visit(browser, api, token, view) as page:
        expect(page.get_by_role("heading", name="Programs")).to_be_visible()
        expect(page.get_by_text("has expired")).to_be_visible()
        page.get_by_label("Token").fill(api.token("browser-expires"))
        page.keyboard.press("Enter")
        expect(page.get_by_label("State")).to_have_value("failed")
        assert page.url == f"{api.url}{view}"


def test_what_somebody_is_writing_outlives_the_login(api: ApiScene, browser: Browser) -> None:
    token = api.token("browser-writes")
    with visit(browser, api, token) as page:
        field = page.get_by_label("Program")
        field.fill("half a na")
        api.revoke("browser-writes")
        expect(page.get_by_text("Your login is over")).to_be_visible()
        expect(field).to_have_value("half a na")
        page.reload()
        expect(page.get_by_label("Token")).to_be_visible()


def test_a_form_that_is_sent_too_late_leads_back_to_its_view(
    api: ApiScene, browser: Browser
) -> None:
    with visit(browser, api, api.token("browser-late"), "/", Reader(scripts=False)) as page:
        api.revoke("browser-late")
        page.get_by_role("button", name="Cancel those").click()
        assert page.url == f"{api.url}/programs/cancel"
        page.get_by_label("Token").fill(api.operator)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Programs")).to_be_visible()
        assert page.url == f"{api.url}/"


def test_without_javascript_it_is_a_list_and_a_sentence(api: ApiScene, browser: Browser) -> None:
    with visit(browser, api, api.operator, reader=Reader(scripts=False)) as page:
        expect(page.get_by_text("without JavaScript it does not")).to_be_visible()
        page.get_by_role("link", name="Queues and workers").click()
        expect(page.get_by_role("heading", name="Leases")).to_be_visible()


@pytest.mark.parametrize("path", ["/", "/fleet", "/login"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_it_fits_and_axe_finds_nothing_serious(
    api: ApiScene, browser: Browser, path: str, width: int
) -> None:
    schemes: tuple[Scheme, ...] = ("light", "dark")
    for scheme in schemes:
        with visit(browser, api, api.operator, path, Reader(width, scheme)) as page:
            expect(page.get_by_role("heading").first).to_be_visible()
            across = page.evaluate("document.documentElement.scrollWidth")
            assert across <= width, scheme
            assert findings(page) == []


def test_it_says_that_the_kernel_is_away_and_goes_on(api: ApiScene, browser: Browser) -> None:
    with visit(browser, api, api.operator, "/?agent=comes-after&tenant=acme") as page:
        expect(page.get_by_text("There are none")).to_be_visible()
        with page.expect_response("**/live?*"):
            page.reload()
        api.kernel.kill("api")
        expect(page.get_by_text("The kernel is away")).to_be_visible()
        expect(page.get_by_text("The kernel is away")).to_be_hidden(timeout=30_000)
        with api.client(api.token("comes-after")) as client:
            client.post("/v1/syscalls", json={"body": {"type": "tool.echo"}, "program": "after"})
        expect(page.get_by_role("row").filter(has_text="after")).to_be_visible()
