"""Every view of the page, wide and narrow, light and dark: it fits, and axe finds nothing serious.

Nothing on a narrow screen is reached by scrolling sideways, neither the page nor anything in it.
PAGE_SHOTS=FOLDER keeps a picture of each, as view-width-scheme.png.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.api_scene import ACME, ApiScene
from tests.integration.test_api_views import ended
from tests.integration.test_page_bulk import failed, is_listed
from tests.integration.test_page_decisions import asked_to_delete
from tests.integration.test_page_tools import calling, having_tools
from tests.page_scene import NARROW, WIDE, Reader, Scheme, findings, logged_in, visit
from tests.waiting import wait_until

AGENT = "seen-by-all"
LONG_AGENT, LONG_GROUP = "a" * 128, "g" * 128
LONG_PATH = "/plans/" + "p" * 200 + ".md"
LONG_NAME = "a-program/of-a-name-that-is-as-long-as-names-may-be/" + "x" * 60
CHAT: dict[str, object] = {
    "type": "llm.chat",
    "messages": [{"role": "user", "content": "Tell me <b>everything</b> that you know."}],
    "max_tokens": 16_000,
}
SHORT: dict[str, object] = {**CHAT, "max_tokens": 12}
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


@dataclass(frozen=True, slots=True)
class View:
    """A view: where it is, for whom, and what leads there from its address."""

    name: str
    path: str
    whose: str = "operator"
    go: Callable[[Page], None] | None = None


def _press(name: str, tick: str = "") -> Callable[[Page], None]:
    def go(page: Page) -> None:
        if tick:
            page.get_by_label(tick).check()
        page.get_by_role("button", name=name).click()
        expect(page.get_by_role("link", name=re.compile("^Leave "))).to_be_visible()

    return go


def _edit(page: Page) -> None:
    page.get_by_text("Let it run with other arguments").click()
    page.locator("textarea").fill(f'{{"path": "{LONG_PATH}"}}')
    page.get_by_role("button", name="Show what this changes").click()
    expect(page.get_by_role("heading", name="What your edit changes")).to_be_visible()


def _lose_login(page: Page) -> None:
    page.context.clear_cookies()
    page.locator("form[action='/groups']").get_by_label("Name").fill("typed")
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_text("The login is over")).to_be_visible()


# The links of which something lies outside of the window.
_BEYOND = """(links, width) => links.filter((each) => {
  const { left, right } = each.getBoundingClientRect();
  return left < 0 || right > width;
}).map((each) => each.textContent)"""
# What is reached by scrolling sideways: texts of one's own in a field are none of it.
_SIDEWAYS = """() => [...document.querySelectorAll("*")].filter((each) =>
  each.scrollWidth > each.clientWidth
  && (each === document.documentElement
    || ["auto", "scroll"].includes(getComputedStyle(each).overflowX))
  && !["INPUT", "SELECT"].includes(each.nodeName)
).map((each) => `${each.nodeName} ${each.scrollWidth} > ${each.clientWidth}: ${each.innerText}`)"""
# The cells that say another word than the head of their column, and the numbers that say none.
_UNLABELLED = """() => [...document.querySelectorAll("tbody td")].filter((cell) => {
  const head = cell.closest("table").rows[0].cells[cell.cellIndex].textContent.trim();
  const { label } = cell.dataset;
  return label === undefined ? cell.matches(".number") : label !== head;
}).map((cell) => cell.outerHTML)"""
PROGRAM = f"/program?tenant={ACME}&agent={AGENT}&program="
VIEWS = (
    View("login", "/login", "nobody"),
    View("programs", "/"),
    View("programs-failed", "/?failed=true"),
    View("programs-none", "/?agent=nobody-at-all"),
    View("programs-of-an-agent", "/", "agent"),
    View("program-compact", f"{PROGRAM}paper"),
    View("program-timeline", f"{PROGRAM}paper&view=timeline"),
    View("program-everything", f"{PROGRAM}paper&view=everything"),
    View("cancel", f"/?agent={AGENT}", go=_press("Cancel those", "Tick all that are shown")),
    View("retry", f"/?agent={AGENT}", go=_press("Run again what", "Tick all that are shown")),
    View("slots", "/slots"),
    View("fleet", "/fleet"),
    View("approvals", "/approvals"),
    View("approvals-all", "/approvals?state=all"),
    View("approvals-of-an-agent", "/approvals", "agent"),
    View("approval", "/approvals/{approval}"),
    View("edit", "/approvals/{approval}", go=_edit),
    View("approve", "/approvals", go=_press("Approve those", "Tick all that are shown")),
    View("deny", "/approvals", go=_press("Deny those", "Tick all that are shown")),
    View("tools", "/tools"),
    View("tools-of-an-agent", "/tools", "agent"),
    View("tool", "/tools/page/send"),
    View("tool-that-runs", "/tools/page/wait_for"),
    View("close-a-session", "/tools", "agent", go=_press("Close session")),
    View("agents", "/agents"),
    View("agent", f"/agents/{ACME}/{AGENT}"),
    View("tokens", "/tokens"),
    View("groups", "/groups"),
    View("groups-of-an-agent", "/groups", "agent"),
    View("grants", "/grants"),
    View("grants-of-an-agent", "/grants", "agent"),
    View("quotas", "/quotas"),
    View("policy", "/policy"),
    View("audit", "/audit"),
    View("error", "/approvals/nonsense"),
    View("login-over", "/groups", "agent", go=_lose_login),
)

REFERENCE = View("reference", "/reference")  # a thousand screens long: no picture, no axe


@pytest.fixture(scope="module")
def approval(api: ApiScene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the id of an approval that waits, with something of everything besides."""
    token = api.token(AGENT)
    with (
        api.client(token) as agent,
        logged_in(api, api.operator) as operator,
        having_tools(api, tmp_path_factory.mktemp("page-tools")) as tools,
        calling(api, tools, token),
    ):
        going = []
        for program in ("paper", "paper/search", LONG_NAME):
            going.append(agent.post("/v1/syscalls", json={"body": CHAT, "program": program}))
            assert going[-1].status_code in (200, 202), going[-1].text
            agent.post("/v1/syscalls?wait_s=20", json={"body": SHORT, "program": program})
        failed(agent, "has-broken")
        for body in ({"type": "tool.call", "tool": "page/fail"}, {"type": "exec.open"}):
            agent.post("/v1/syscalls?wait_s=30", json={"body": body, "program": "paper"})
        asked = [asked_to_delete(agent, f"/plans/{name}.md") for name in ("old", "older")]
        group = {"body": {"type": "access.group_create", "group": "readers"}}
        agent.post("/v1/syscalls?wait_s=20", json=group)
        with api.client(api.token(LONG_AGENT)) as client:
            _of_long_names(client)
        with api.client(api.operator) as client:
            limits = {"module": "llm", "tenant": ACME, "agent": AGENT, "max_running": 4}
            client.put("/v1/quotas", json=limits).raise_for_status()
        wait_until(lambda: is_listed(operator, AGENT))
        yield str(asked[0]["id"])
        for one in going:
            agent.post(f"/v1/syscalls/{one.json()['id']}/cancel")


def _of_long_names(client: httpx.Client) -> None:
    """Have an agent do one of each thing, by names as long as names may be."""
    asked_to_delete(client, LONG_PATH)
    ended(client, {"type": "access.group_create", "group": LONG_GROUP})
    grant: dict[str, object] = {
        "type": "access.grant",
        "object": {"kind": "file", "name": LONG_PATH},
        "group": LONG_GROUP,
        "verbs": ["read"],
    }
    ended(client, grant)
    failing = {"body": {"type": "tool.call", "tool": "page/fail"}, "program": LONG_NAME}
    client.post("/v1/syscalls?wait_s=30", json=failing)


@contextmanager
def _shown(
    api: ApiScene, browser: Browser, view: View, approval: str, reader: Reader
) -> Iterator[Page]:
    """Yield a view as somebody has come to it."""
    tokens = {"operator": api.operator, "agent": api.token(AGENT), "nobody": None}
    with visit(
        browser, api, tokens[view.whose], view.path.format(approval=approval), reader
    ) as page:
        expect(page.locator("h1")).to_be_visible()
        if view.go:
            view.go(page)
        if view.name == "slots":
            expect(page.locator("#charts-now")).to_contain_text("running")
        yield page


def _keep(page: Page, view: View, width: int, scheme: Scheme) -> None:
    folder = os.environ.get("PAGE_SHOTS")
    if folder and view is not REFERENCE:
        shot = Path(folder) / f"{view.name}-{width}-{scheme}.png"
        page.screenshot(path=shot, full_page=True)


@pytest.mark.timeout(240, func_only=True)  # some 40 views, each loaded by a browser of its own
def test_on_a_narrow_screen_nothing_scrolls_sideways_and_cells_say_what_they_are(
    api: ApiScene, browser: Browser, approval: str
) -> None:
    for view in (*VIEWS, REFERENCE):
        with _shown(api, browser, view, approval, Reader(NARROW)) as page:
            assert page.evaluate(_SIDEWAYS) == [], view.name
            assert page.evaluate(_UNLABELLED) == [], view.name


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_it_fits_and_everybody_can_read_it(
    api: ApiScene, browser: Browser, approval: str, view: View, width: int, scheme: Scheme
) -> None:
    with _shown(api, browser, view, approval, Reader(width, scheme)) as page:
        _keep(page, view, width, scheme)
        assert findings(page) == []
        assert page.evaluate(_SIDEWAYS) == []
        assert page.locator("nav.main a").evaluate_all(_BEYOND, width) == []
