"""The page in a real browser: it follows the kernel; narrow and wide, light and dark."""

import re

import pytest
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect

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


def test_one_tick_is_for_all_that_are_shown(api: ApiScene, browser: Browser) -> None:
    with api.client(api.token("ticked")) as client:
        for name in ("first", "second"):
            client.post("/v1/syscalls", json={"body": CHAT, "program": name})
        with visit(browser, api, api.operator, "/?agent=ticked") as page:
            every = page.get_by_label("Tick all that are shown")
            rows = page.locator("[name=program][type=checkbox]")
            expect(rows).to_have_count(2)
            every.check()
            expect(rows.nth(0)).to_be_checked()
            rows.nth(1).uncheck()
            expect(every).not_to_be_checked()
            every.check()
            client.post("/v1/syscalls", json={"body": CHAT, "program": "third"})
            expect(rows).to_have_count(3)  # it has come since, and nobody has ticked it
            expect(every).not_to_be_checked()
            every.check()
            page.get_by_role("button", name="Cancel those").click()
            page.get_by_role("button", name="Cancel: 3 syscalls").click()
            expect(page.get_by_role("heading", name="3 of 3 syscalls cancelled")).to_be_visible()


def test_filters_stand_in_the_address(api: ApiScene, browser: Browser) -> None:
    with visit(browser, api, api.operator) as page:
        page.get_by_label("State").select_option("failed")
        page.wait_for_url(f"{api.url}/?state=failed")  # what is left empty stands not in it
        expect(page.get_by_label("State")).to_have_value("failed")
        page.go_back()
        expect(page.get_by_label("State")).to_have_value("")


def test_only_what_is_in_view_is_asked_for(api: ApiScene, browser: Browser) -> None:
    def is_stream(request: Request, *, of_head: bool) -> bool:
        return "/live?" in request.url and ("part=head" in request.url) == of_head

    with visit(browser, api, api.operator, "/fleet", Reader(NARROW)) as page:
        expect(page.get_by_role("heading", name="Leases")).to_be_attached()
        with page.expect_request(lambda one: is_stream(one, of_head=False)):
            page.evaluate("scrollTo(0, document.body.scrollHeight)")
        with page.expect_request(lambda one: is_stream(one, of_head=True)):
            page.evaluate("scrollTo(0, 0)")


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


def _typed(page: Page, name: str) -> Locator:
    """Type the name of a group that is to be made; return the form."""
    form = page.locator("form[action='/groups']")
    form.get_by_label("Name").fill(name)
    return form


def _log_in_again(page: Page, token: str) -> None:
    page.get_by_label("Token of").fill(token)
    page.get_by_role("button", name="Log in").click()


def test_a_token_that_expires_asks_for_a_login_and_what_was_typed_stays(
    api: ApiScene, browser: Browser
) -> None:
    token = api.token("expires-here", ttl_s=6.0)
    with visit(browser, api, token, "/groups") as page:
        form = _typed(page, "typed-before")
        expect(page.get_by_text("The login is over")).to_be_visible()
        assert findings(page) == []
        _log_in_again(page, "aios_nonsense")
        expect(page.get_by_text("was revoked, or has expired")).to_be_visible()
        with page.expect_request("**/live?*"):  # the page follows the kernel again
            _log_in_again(page, api.token("expires-here"))
        expect(page.get_by_text("The login is over")).to_be_hidden()
        expect(form.get_by_label("Name")).to_have_value("typed-before")
        form.get_by_role("button", name="Make it").click()
        expect(page.get_by_role("row").filter(has_text="typed-before")).to_be_visible()


def _hold_streams_back(page: Page) -> None:
    """Let no stream of the page begin: what it knows, it has from its own questions."""

    def let_pass(route: Route) -> None:
        if route.request.method == "HEAD":
            route.continue_()

    page.route(re.compile("/(live|parts)[?]"), let_pass)
    page.reload()


def test_a_form_is_not_sent_with_a_login_that_is_over(api: ApiScene, browser: Browser) -> None:
    with visit(browser, api, api.token("sends-late"), "/groups") as page:
        _hold_streams_back(page)
        form = _typed(page, "typed-late")
        sent: list[str] = []
        page.on("request", lambda one: sent.extend([one.url] * (one.method == "POST")))
        api.revoke("sends-late")
        form.get_by_role("button", name="Make it").click()
        expect(page.get_by_text("The login is over")).to_be_visible()
        assert sent == []
        _log_in_again(page, api.token("sends-late"))
        expect(page.get_by_text("The login is over")).to_be_hidden()
        form.get_by_role("button", name="Make it").click()
        expect(page.get_by_role("row").filter(has_text="typed-late")).to_be_visible()


def test_somebody_elses_login_is_another_page(api: ApiScene, browser: Browser) -> None:
    with visit(browser, api, api.token("goes-home"), "/groups") as page:
        _typed(page, "not-bobs")
        api.revoke("goes-home")
        expect(page.get_by_text("The login is over")).to_be_visible()
        _log_in_again(page, api.colleague)
        expect(page.get_by_role("heading", name="Programs")).to_be_visible()
        expect(page.locator(".who")).to_have_text("acme/bob")


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
