"""How many clicks each answer is away: what docs/page-compared.md says of this page, walked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from aios_broker.queues.control import Control
from aios_broker.queues.functions import Functions
from aios_broker.queues.keys import Keys
from aios_broker.redis.connection import Connection
from tests.api_scene import ACME, ApiScene, run
from tests.integration.test_api_views import ended, waiting_approval
from tests.integration.test_page_runs import MISSING, ask
from tests.page_scene import visit
from tests.waiting import wait_until

PAGE = Path(__file__).parents[2] / "docs" / "page-compared.md"
COUNTED = re.compile(r"^\| ([^|]+?) \| (\d+)\b[^|]*\|", re.M)  # question, clicks on this page
WRITER = "clicked"
HELD, BROKEN, PARKED, DECIDED = "held", "broken", "parked", "decided"


def chat(tokens: int) -> dict[str, object]:
    message = {"role": "user", "content": "Go on."}
    return {"type": "llm.chat", "messages": [message], "max_tokens": tokens}


@pytest.fixture
def programs(api: ApiScene) -> Iterator[None]:
    """Programs of which there is something to ask: one is held, one failed, two wait."""
    with api.client(api.token(WRITER)) as client:

        def asks_to_delete(program: str) -> str:
            path = f"/{program}.md"
            ended(client, {"type": "storage.write", "path": path, "content": "1"}, program=program)
            body: dict[str, object] = {"type": "storage.delete", "path": path}
            return str(waiting_approval(client, body, program=program)["syscall_id"])

        asked = client.post("/v1/syscalls", json={"body": chat(4_000), "program": HELD})
        running = str(asked.json()["id"])
        wait_until(partial(is_state, client, running, "running"))
        for is_held in (True, False, True):
            run(hold(api.redis_url, running, is_held=is_held))
            wait_until(partial(is_state, client, running, "held" if is_held else "running"))
        ended(client, chat(4), program=f"{HELD}/below")
        ask(client, MISSING, 404, program=BROKEN)
        ended(client, {"type": "tool.echo", "text": "x"}, program=BROKEN)
        left = [running, *map(asks_to_delete, (PARKED, DECIDED))]
        yield
        for each in left:
            client.post(f"/v1/syscalls/{each}/cancel")


async def hold(redis_url: str, job_id: str, *, is_held: bool) -> None:
    """Take a syscall out of the run queue as `aios suspend` does, or put it back."""
    async with aclosing(Connection(redis_url)) as connection:
        control = Control(Functions(connection), Keys())
        await (control.hold if is_held else control.release)([job_id], module="llm")


def is_state(client: httpx.Client, syscall_id: str, wanted: str) -> bool:
    return bool(client.get(f"/v1/syscalls/{syscall_id}").json()["state"] == wanted)


@dataclass(slots=True)
class Walk:
    """Somebody on the way from the first view to an answer."""

    page: Page
    clicks: int = 0

    def click(self, what: Locator) -> None:
        what.click()
        self.clicks += 1

    def to(self, name: str) -> None:
        """Follow a link of the view."""
        self.click(self.page.get_by_role("link", name=name, exact=True))

    def row(self, program: str) -> Locator:
        """Return the row of a program in the list."""
        link = self.page.get_by_role("link", name=program, exact=True)
        return self.page.get_by_role("row").filter(has=link).filter(has_text=WRITER)

    def sees(self, *what: Locator) -> None:
        for each in what:
            expect(each.first).to_be_visible()


def what_runs(walk: Walk) -> None:
    walk.sees(walk.row(HELD).get_by_text("held"), walk.row(PARKED).get_by_text("parked"))


def why_it_waits(walk: Walk) -> None:
    expect(walk.row(HELD).locator(".why")).to_contain_text("An operator took it out")
    expect(walk.row(PARKED).locator(".why")).to_contain_text("a person's approval")


def which_are_held(walk: Walk) -> None:
    walk.click(walk.page.locator(".counts a", has_text=re.compile("^held")))
    walk.sees(walk.row(HELD))
    expect(walk.row(PARKED)).to_have_count(0)


def what_failed(walk: Walk) -> None:
    walk.click(walk.page.get_by_label("failed lately"))
    walk.sees(walk.row(BROKEN))
    expect(walk.row(PARKED)).to_have_count(0)


def why_it_failed(walk: Walk) -> None:
    walk.sees(walk.row(BROKEN).get_by_text("not-found"))


def in_order(walk: Walk) -> None:
    walk.to(BROKEN)
    expect(walk.page.locator("tbody tr")).to_contain_text(["tool.echo", "memory.get"])


def where_time_went(walk: Walk) -> None:
    walk.to(HELD)
    walk.to("timeline")
    expect(walk.page.locator("svg.bars").first).to_be_visible()
    walk.sees(walk.page.get_by_role("columnheader", name="Waited"))


def everything(walk: Walk) -> None:
    walk.to(BROKEN)
    walk.to("everything")
    walk.click(walk.page.get_by_text("What it asked").last)
    walk.sees(walk.page.get_by_text('"note": "0000'), walk.page.get_by_text("Its error"))


def only_what_failed(walk: Walk) -> None:
    walk.to(BROKEN)
    walk.to("only what failed")
    expect(walk.page.locator("tbody tr")).to_contain_text(["memory.get"])


def above_and_below(walk: Walk) -> None:
    walk.to(HELD)
    walk.sees(walk.page.get_by_role("link", name=f"{HELD}/below", exact=True))


def slots(walk: Walk) -> None:
    walk.to("Slots")
    walk.sees(walk.page.locator("#gantt"))
    expect(walk.page.locator("#charts-now")).to_contain_text("running")


def when_it_was_suspended(walk: Walk) -> None:
    walk.to(HELD)
    walk.to("everything")
    heading = walk.page.get_by_role("heading", name=re.compile("llm.chat"))
    states = walk.page.locator("section.syscall").filter(has=heading).last.locator("tbody .state")
    expect(states).to_have_text(["queued", "slice", "held", "queued", "slice", "held"])


def queue_depth(walk: Walk) -> None:
    walk.to("Queues and workers")
    walk.sees(walk.page.locator("#queue-llm"), walk.page.get_by_role("columnheader", name="Oldest"))


def tools(walk: Walk) -> None:
    walk.to("Tools")
    walk.sees(walk.page.get_by_role("heading", name="Exec sessions", exact=True))


def decide(walk: Walk) -> None:
    walk.click(walk.row(DECIDED).get_by_role("link", name="See and decide"))
    walk.click(walk.page.get_by_role("button", name="Approve"))
    walk.sees(walk.page.get_by_text("What it allowed has run"))


def cost(walk: Walk) -> None:
    walk.sees(walk.page.get_by_role("columnheader", name="Cost"))
    expect(walk.row(HELD).locator("td").nth(9)).to_be_visible()


def end_it(walk: Walk) -> None:
    done_to_one(walk, HELD, "Cancel those", "Cancel")


def run_it_again(walk: Walk) -> None:
    done_to_one(walk, BROKEN, "Run again what", "Run again")


def done_to_one(walk: Walk, program: str, button: str, verb: str) -> None:
    walk.click(walk.row(program).get_by_role("checkbox"))
    walk.click(walk.page.get_by_role("button", name=button))
    walk.click(walk.page.get_by_role("button", name=f"{verb}: 1 syscall"))
    walk.sees(walk.page.get_by_role("heading", name="1 of 1 syscall"))


def same_view(walk: Walk) -> None:
    walk.page.get_by_label("State").select_option("held")
    walk.page.wait_for_url("**state=held**")
    walk.page.goto(walk.page.url)
    expect(walk.row(PARKED)).to_have_count(0)
    walk.sees(walk.row(HELD))


def in_another_tool(walk: Walk) -> None:
    walk.to(HELD)
    with walk.page.expect_download() as download:
        walk.to("trace for Perfetto")
    assert json.loads(Path(download.value.path()).read_text("utf-8"))["traceEvents"]


ANSWERS: dict[str, Callable[[Walk], None]] = {
    "What runs, and what waits?": what_runs,
    "Why does this one wait?": why_it_waits,
    "Which ones does somebody hold up?": which_are_held,
    "What failed lately?": what_failed,
    "Why did it fail?": why_it_failed,
    "What did this program do, in order?": in_order,
    "Where did its time go?": where_time_went,
    "Everything, with requests and answers": everything,
    "Only what failed of one program": only_what_failed,
    "Who began it, what did it begin?": above_and_below,
    "Which slot does what now?": slots,
    "When was it suspended, when did it go on?": when_it_was_suspended,
    "How deep is the queue, how old its oldest?": queue_depth,
    "Which tools run, how many may, what failed last?": tools,
    "Let an irreversible step run, or not": decide,
    "What did it cost?": cost,
    "Send somebody to exactly this view": same_view,
    "End one; end fifty": end_it,
    "Run again what failed": run_it_again,
    "The run in another tool": in_another_tool,
}


@pytest.mark.usefixtures("programs")
def test_each_answer_is_as_near_as_the_table_says(api: ApiScene, browser: Browser) -> None:
    written = {question: int(n) for question, n in COUNTED.findall(PAGE.read_text("utf-8"))}
    counted = {}
    with visit(browser, api, api.operator, f"/?tenant={ACME}") as page:
        for question, answer in ANSWERS.items():
            page.goto(api.url)
            walk = Walk(page)
            answer(walk)
            counted[question] = walk.clicks
    assert counted == {question: written.get(question) for question in ANSWERS}
    assert written.keys() == counted.keys(), "a number of the table that nobody has walked"
