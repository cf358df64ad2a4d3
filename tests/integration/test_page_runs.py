"""One program in three views, and the slots as they go: by HTTP, with the cookie of a login."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.api_scene import ACME, ApiScene
from tests.page_scene import logged_in
from tests.waiting import wait_until

HOSTILE = "<script>alert(1)</script>\u202eabc"
SAMPLE_FIGURES = 5
WORDS = re.compile(r"<[^>]*>|\s+")


MISSING: dict[str, object] = {"type": "memory.get", "note": "0" * 32}


def ask(
    client: httpx.Client, body: dict[str, object], status: int = 200, **fields: object
) -> dict[str, Any]:
    answer = client.post("/v1/syscalls", params={"wait_s": 20}, json={"body": body, **fields})
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def chat(words: str, tokens: int = 4) -> dict[str, object]:
    message = {"role": "user", "content": words}
    return {"type": "llm.chat", "messages": [message], "max_tokens": tokens}


def told(answer: httpx.Response) -> str:
    """Return the words of a page, a space between."""
    assert answer.status_code == 200, answer.text
    return WORDS.sub(" ", answer.text)


def test_a_program_is_shown_three_ways_with_what_stands_above_and_below(api: ApiScene) -> None:
    token = api.token("author")
    with api.client(token) as client:
        first = ask(client, chat("one"), program="book")
        below = ask(client, chat("two"), program="book/chapter")
        failed = ask(client, MISSING, 404, program="book/chapter")
    with logged_in(api, token) as page:

        def shown(**query: str) -> str:
            return told(page.get("/program", params={"program": "book", **query}))

        compact, timeline = shown(), shown(view="timeline")
        for each in (first["id"], below["id"], failed["syscall_id"]):
            assert each[:8] in compact
            assert each[:8] in timeline
        assert failed["code"] in compact
        assert "book/chapter 2 syscalls" in re.sub(" +", " ", compact)
        assert 'class="bar running"' in page.get("/program?program=book&view=timeline").text
        whole = shown(view="everything")
        assert all(words in whole for words in ("What it asked", "one", "Its error", "finish"))
        # That it failed is in the ledger a moment later.
        wait_until(lambda: failed["syscall_id"][:8] in shown(failed="true"))
        only_failed = shown(failed="true")
        assert first["id"][:8] not in only_failed
        child = page.get("/program", params={"program": "book/chapter"}).text
        assert 'rel="up"' in child
        assert first["id"][:8] not in child


def test_what_agents_wrote_is_text(api: ApiScene) -> None:
    token = api.token("prankster")
    with api.client(token) as client:
        ask(client, {"type": "tool.echo", "text": HOSTILE}, program="p" * 128)
    with logged_in(api, token) as page:
        for view in ("compact", "timeline", "everything"):
            text = page.get("/program", params={"program": "p" * 128, "view": view}).text
            assert "<script>alert" not in text
            assert "\u202e" not in text
        assert "&lt;script&gt;alert" in text


@pytest.mark.parametrize(
    ("who", "query", "status"),
    [
        ("agent", {"program": "x"}, 200),
        ("agent", {"program": "x", "agent": "bob"}, 404),
        ("agent", {"program": "x", "tenant": "globex"}, 404),
        ("administrator", {"program": "x", "agent": "bob"}, 200),
        ("operator", {"program": "x"}, 400),
        ("operator", {"program": "x", "agent": "nobody", "tenant": "globex"}, 200),
        ("agent", {}, 400),
        ("agent", {"program": "x y"}, 400),
        ("agent", {"program": "x", "view": "other"}, 400),
    ],
)
def test_each_sees_what_is_its_own(
    api: ApiScene, who: str, query: dict[str, str], status: int
) -> None:
    with logged_in(api, getattr(api, who)) as page:
        assert page.get("/program", params=query).status_code == status


def test_a_program_is_taken_away_as_a_trace(api: ApiScene) -> None:
    token = api.token("traced")
    with api.client(token) as client:
        asked = [ask(client, chat(each), program=each)["id"] for each in ("film", "film/scene")]
        ask(client, chat("another"), program="filmed")
    whose = {"tenant": ACME, "agent": "traced", "program": "film"}
    with logged_in(api, api.operator) as page:
        assert (
            "/program/trace?tenant=acme&amp;agent=traced" in page.get("/program", params=whose).text
        )
        answer = page.get("/program/trace", params=whose)
        assert answer.headers["content-disposition"] == 'attachment; filename="trace.json"'
        spans = [each for each in answer.json()["traceEvents"] if each.get("cat") == "syscall"]
        assert sorted(each["args"]["syscall"] for each in spans) == sorted(asked)
        assert page.get("/program/trace", params={"program": "film"}).status_code == 400
    with logged_in(api, token) as page:
        assert page.get("/program/trace?program=film").status_code == 200
        assert page.get("/program/trace?program=never").status_code == 404
        assert page.get("/program/trace?program=film&nonsense=1").status_code == 400
    for other in (api.colleague, api.foreign_administrator):
        with logged_in(api, other) as page:
            assert page.get("/program/trace", params=whose).status_code == 404


def events(page: httpx.Client, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the events of a stream as they come."""
    with page.stream("GET", path) as answer:
        assert answer.status_code == 200
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def until(
    found: Iterator[tuple[str, Any]], is_seen: Callable[[dict[int, Any]], bool]
) -> dict[int, Any]:
    """Take in slices, as the page does, until something is seen of them."""
    slices: dict[int, Any] = {}
    for name, news in itertools.islice(found, 200):
        if name == "beat":
            continue
        assert name == "slices", news
        if news["is_new"]:
            slices.clear()
        slices |= {each["number"]: each for each in news["slices"]}
        assert all(len(sample) == SAMPLE_FIGURES for sample in news["samples"])
        if is_seen(slices):
            return slices
    raise AssertionError(f"not seen among {slices}")


def test_a_slice_is_seen_as_it_runs_and_as_it_ends(api: ApiScene) -> None:
    name = "watched"
    with api.client(api.token(name)) as client, logged_in(api, api.operator) as page:
        asked = client.post("/v1/syscalls", json={"body": chat("go on", 8_000), "program": "seen"})
        syscall_id = asked.json()["id"]
        found = events(page, "/slots/events")

        def its(slices: dict[int, Any]) -> list[Any]:
            return [each for each in slices.values() if each["job_id"] == syscall_id]

        slices = until(found, lambda seen: bool(its(seen)))
        [running] = its(slices)
        assert (running["agent"], running["program"], running["ends_ms"]) == (name, "seen", None)
        assert running["lanes"]
        client.post(f"/v1/syscalls/{syscall_id}/cancel")
        slices = until(found, lambda seen: any(each["ends_ms"] is not None for each in its(seen)))
        [ended] = its(slices)
        assert (ended["number"], ended["ended_by"]) == (running["number"], "cancel")
        assert ended["ends_ms"] >= ended["begins_ms"] > 0


def test_slots_are_shown_to_operators_alone(api: ApiScene) -> None:
    for who, status in (("agent", 403), ("administrator", 403), ("operator", 200)):
        with logged_in(api, getattr(api, who)) as page:
            assert page.get("/slots").status_code == status
            assert page.head("/slots/events").status_code == (204 if status == 200 else status)
    with logged_in(api, api.operator) as page:
        assert page.get("/slots?module=none").status_code == 400
