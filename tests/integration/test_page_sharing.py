"""Groups and grants, changed on the page: by syscalls of the agent, with the same approvals."""

import re

import httpx

from tests.api_scene import ApiScene
from tests.integration.test_api_views import ended, items
from tests.page_scene import logged_in, send_form
from tests.waiting import wait_until


def known(api: ApiScene, name: str) -> str:
    """Make an agent known; return its token."""
    token = api.token(name)
    with api.client(token) as client:
        ended(client, {"type": "access.whoami"})
    return token


def members(client: httpx.Client, name: str) -> dict[str, str] | None:
    """Return who is in a group; None: there is none."""
    found = [each for each in items(client, "/v1/groups") if each["name"] == name]
    return found[0]["members"] if found else None


def approval_of(answer: httpx.Response, person: httpx.Client) -> str:
    """Return the address of the approval that a form has led to."""
    assert answer.status_code == 303, answer.text
    assert re.fullmatch("/approvals/of/[0-9a-f]{32}", answer.headers["location"])
    return str(person.get(answer.headers["location"]).headers["location"])


def test_an_agent_makes_a_group_and_asks_for_members(api: ApiScene) -> None:
    token = known(api, "page-owner")
    known(api, "page-member")
    with (
        api.client(token) as agent,
        logged_in(api, token) as page,
        logged_in(api, api.operator) as operator,
    ):
        made = send_form(page, "/groups", group="page-group")
        assert (made.status_code, made.headers["location"]) == (303, "/groups")
        assert members(agent, "page-group") == {"page-owner": "admin"}
        assert 'action="/groups/members"' in page.get("/groups").text
        wanted = {"group": "page-group", "agent": "page-member", "role": "member"}
        asked = approval_of(send_form(page, "/groups/members", **wanted), page)
        assert members(agent, "page-group") == {"page-owner": "admin"}
        send_form(operator, f"{asked}/approve")
        both = {"page-owner": "admin", "page-member": "member"}
        wait_until(lambda: members(agent, "page-group") == both)
        out = {"group": "page-group", "agent": "page-member"}
        asked = approval_of(send_form(page, "/groups/members/remove", **out), page)
        send_form(operator, f"{asked}/approve")
        wait_until(lambda: members(agent, "page-group") == {"page-owner": "admin"})
        asked = approval_of(send_form(page, "/groups/delete", group="page-group"), page)
        send_form(operator, f"{asked}/approve")
        wait_until(lambda: members(agent, "page-group") is None)


def test_a_file_is_granted_and_taken_back(api: ApiScene) -> None:
    token = known(api, "page-grants")
    reader = known(api, "page-reads")
    with (
        api.client(token) as agent,
        logged_in(api, token) as page,
        logged_in(api, api.operator) as operator,
        api.client(reader) as other,
    ):
        ended(agent, {"type": "storage.write", "path": "/shared.md", "content": "for both"})
        what = {"kind": "file", "name": "/shared.md", "agent": "page-reads"}
        given = send_form(page, "/grants", **what, verbs=["read", "search"], days="2")
        assert (given.status_code, given.headers["location"]) == (303, "/grants"), given.text
        read: dict[str, object] = {
            "type": "storage.read",
            "path": "/shared.md",
            "owner": "page-grants",
        }
        assert ended(other, read)["state"] == "finished"
        shown = page.get("/grants").text
        assert "agent:page-reads" in shown
        assert "Take back" in shown
        assert "Take back" not in operator.get("/grants").text
        taken = send_form(page, "/grants/revoke", **what, owner="page-grants")
        send_form(operator, f"{approval_of(taken, page)}/approve")
        wait_until(lambda: "agent:page-reads" not in page.get("/grants").text)


def test_what_cannot_be_is_refused_in_words(api: ApiScene) -> None:
    token = known(api, "page-wrong")
    with logged_in(api, token) as page, logged_in(api, api.operator) as operator:
        for path, fields in (
            ("/groups", {"group": "no name"}),
            ("/groups/members", {"group": "nobodys", "agent": "page-wrong"}),
            ("/grants", {"kind": "file", "name": "/x", "agent": "bob"}),
            (
                "/grants",
                {"kind": "file", "name": "/x", "agent": "b", "verbs": "read", "days": "-1"},
            ),
            ("/grants", {"kind": "nonsense", "name": "/x", "agent": "bob", "verbs": "read"}),
        ):
            answer = send_form(page, path, **fields)
            assert 400 <= answer.status_code < 500, (path, fields)
            assert 'role="alert"' in answer.text
        assert send_form(operator, "/groups", group="the-operators").status_code == 403
        assert "changed by the agents" in operator.get("/groups").text
