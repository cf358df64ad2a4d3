"""The description of the API says what is so: each route, its statuses, examples that are valid."""

import re
from html.parser import HTMLParser

import jsonschema_rs
import msgspec
import pytest

from aios_kernel_api import reference_page
from aios_kernel_api.app import DOORS
from aios_kernel_api.openapi import STATUS_WORDS, shown_path
from aios_kernel_api.operations import Operation
from aios_kernel_api.rest.description import operations, whole_document

OPERATIONS = {one.name: one for one in operations()}


def routes() -> set[str]:
    """Return the methods of all routes, HEAD beside GET left out."""
    return {
        f"{method} {route.path}"
        for door in DOORS
        if not door.rules.is_page
        for route in door.routes
        for method in route.methods or ()
        if method != "HEAD"
    }


def test_each_route_is_described_and_nothing_else() -> None:
    assert routes() == OPERATIONS.keys()


def test_the_description_is_json_and_refers_to_what_is_there() -> None:
    described = whole_document()
    text = msgspec.json.encode(described).decode()
    names = set(re.findall(r'"\$ref":"#/components/schemas/([^"]+)"', text))

    assert names <= described["components"]["schemas"].keys()
    assert described["openapi"] == "3.1.0"
    assert r"\\Z" not in text, "a pattern that JSON Schema does not know"


def test_each_operation_has_a_name_of_its_own() -> None:
    found = [
        one["operationId"] for path in whole_document()["paths"].values() for one in path.values()
    ]
    assert len(found) == len(set(found)) == len(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_its_statuses_have_words(name: str) -> None:
    one = OPERATIONS[name]
    described = whole_document()["paths"][shown_path(one.path)][one.method.lower()]

    assert set(one.errors) <= STATUS_WORDS.keys()
    assert all(answer["description"] for answer in described["responses"].values())
    assert ("401" in described["responses"]) is (one.scope is not None)


def examples() -> list[tuple[str, object, object]]:
    return [
        (one.name, kind, example)
        for one in OPERATIONS.values()
        for kind, example in [
            (one.body, one.body_example),
            *((answer.kind, answer.example) for answer in one.answers.values()),
        ]
        if example is not None
    ]


@pytest.mark.parametrize(("name", "kind", "example"), examples())
def test_an_example_is_what_the_route_takes_or_gives(
    name: str, kind: object, example: object
) -> None:
    converted = msgspec.convert(example, kind)

    assert isinstance(example, dict)
    assert example.keys() <= {*type(converted).__struct_fields__}, name


def test_schemas_are_schemas() -> None:
    for schema in whole_document()["components"]["schemas"].values():
        assert jsonschema_rs.meta.is_valid(schema)


def test_each_operation_that_takes_json_has_an_example() -> None:
    lacking = [
        one.name
        for one in OPERATIONS.values()
        if one.body not in (None, bytes) and one.body_example is None
    ]
    assert not lacking


class Page(HTMLParser):
    """What a page would fetch or run, and what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.fetched: set[str] = set()
        self.links: set[str] = set()
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), "a handler"
            assert name != "style", "the policy forbids it"
            if name == "src" or (tag == "link" and name == "href"):
                self.fetched.add(value or "")
            elif name == "href":
                self.links.add(value or "")
            elif name == "id":
                self.ids.add(value or "")


def test_the_page_has_no_script_and_no_foreign_host() -> None:
    page = Page()
    page.feed(reference_page.page(whole_document()))

    assert not page.tags & {"script", "iframe", "img", "form", "style"}
    assert page.fetched == {"/reference.css"}
    assert all(link.startswith("#") or link == "/openapi.json" for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    assert "://" not in reference_page.STYLE


def test_the_page_names_each_operation() -> None:
    text = reference_page.page(whole_document())

    for one in OPERATIONS.values():
        assert shown_path(one.path) in text


def test_words_on_the_page_are_text() -> None:
    described = whole_document()
    hostile = msgspec.json.decode(msgspec.json.encode(described))
    hostile["info"]["title"] = "<script>alert(1)</script>"
    next(iter(next(iter(hostile["paths"].values())).values()))["summary"] = "`<img src=x>`"
    text = reference_page.page(hostile)

    assert "<script" not in text
    assert "<img" not in text


def test_an_operation_is_said_in_one_line() -> None:
    assert OPERATIONS["GET /v1/queues"].name == "GET /v1/queues"
    assert isinstance(OPERATIONS["GET /v1/queues"], Operation)
