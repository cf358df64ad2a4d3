"""What people decide by on the page is exact, and nothing of it is hidden or obeyed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_broker.contract.access import Approval, BoundObject
from aios_broker.contract.errors import InvalidSyscall
from aios_broker.contract.printable import printable
from aios_broker.queues.quota import LIMIT_NAMES
from aios_broker.scheduler.policy import POLICY_NAMES
from aios_broker.views.settings import POLICIES
from aios_kernel_api.identity import Caller
from aios_kernel_api.page.decisions.approvals import (
    MAX_SHOWN_CHARACTERS,
    arguments_text,
    diff_lines,
    read_arguments,
)
from aios_kernel_api.page.decisions.settings import LIMITS, ranges
from aios_kernel_api.page.html import rendered
from aios_kernel_api.rest.settings import PolicyChange, QuotaSetting

HOSTILE = "</pre><script>alert(1)</script>\"'\u202egnp.exe\u200b\x85\U000e0041" + "n" * 200
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text().filter(str.isprintable),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=20), values | st.text(max_size=50), max_size=4))
def test_arguments_read_back_as_they_are(arguments: dict[str, Any]) -> None:
    text = arguments_text(arguments)

    assert json.loads(text) == arguments
    assert printable(text) == text


def test_long_arguments_are_exact() -> None:
    arguments = {"content": "é\u202e" * MAX_SHOWN_CHARACTERS}

    assert json.loads(arguments_text(arguments)) == arguments
    assert arguments_text(arguments).isascii()


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1, "a": 2}', '{"a": "\\u0000"}', '{"a": NaN}'])
def test_an_edit_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(InvalidSyscall):
        read_arguments(text)


def test_lines_of_a_difference_are_told_apart() -> None:
    signs = [line.sign for line in diff_lines("--- a\n+++ b\n@@ -1 +1 @@\n-old\n+new\n same")]

    assert signs == ["place", "place", "place", "removed", "added", "same"]


def test_what_an_agent_asks_for_is_text() -> None:
    one = Approval(
        id="a" * 32,
        state="waiting",
        syscall_id="b" * 32,
        agent="ada",
        tenant="acme",
        kind="storage.delete",
        operation="delete",
        arguments={"path": HOSTILE},
        arguments_sha256="c" * 64,
        what=HOSTILE,
        asked_at=1.0,
        expires_at=2.0,
        diff=f"-{HOSTILE}",
        objects=(BoundObject("delete", "file", HOSTILE, 3),),
    )
    page = rendered(
        "decisions/approval.html",
        one=one,
        state_part="",
        may_decide=True,
        arguments=arguments_text(one.arguments),
        left_out=0,
        diff=diff_lines(one.diff),
        caller=Caller("", "operator:olga", "operator", "token"),
        csrf="",
        path="/approvals",
        head="",
        navigation=[],
        rq_dashboard="",
    )

    assert "<script>alert" not in page
    assert (
        page.count("&lt;script&gt;alert(1)") == 6
    )  # title, heading, object, diff, arguments, edit
    assert not {"\u202e", "\u200b", "\x85", "\U000e0041"} & set(page)


@pytest.mark.parametrize(
    ("thing", "goes", "words"),
    [
        (
            BoundObject("delete", "file", "12", 3, 1, "ab" * 32, "file /reports/q3.md", 1234),
            True,
            "delete: file /reports/q3.md, version 3, 1,234 bytes, sha256 abababababab",
        ),
        (
            BoundObject("overwrite", "version", "12", 1, 1, "ab" * 32, "version 1 of /a.md", 1),
            True,
            "overwrite: version 1 of /a.md, 1 byte, sha256 abababababab",
        ),
        (
            BoundObject("delete", "source", "13", 2, 1, "", "file /new.md", 5),
            False,
            "in its place: file /new.md, version 2, 5 bytes",
        ),
        (
            BoundObject("rollback", "version", "12", 1, 1, "", "version 1 of /a.md", 5),
            False,
            "in its place: version 1 of /a.md, 5 bytes",
        ),
        (
            BoundObject("delete", "tree", "7", 0, 4, "", "directory /reports"),
            True,
            "delete: directory /reports, 4 things in it",
        ),
        (
            BoundObject("unshare", "links", "7", 0, 1, "", "links to /a.md"),
            True,
            "unshare: links to /a.md, 1 link",
        ),
        (
            BoundObject(
                "tool", "tool", "local/add", 0, 1, "0123456789ab", "a run of tool local/add"
            ),
            False,
            "tool: a run of tool local/add, version 0123456789ab",
        ),
        (BoundObject("delete", "file", "12", 3), True, "delete: file 12, version 3"),
    ],
)
def test_what_would_go_is_told_as_people_call_it(
    thing: BoundObject, *, goes: bool, words: str
) -> None:
    assert (thing.goes, thing.words) == (goes, words)


def test_ranges_are_those_of_the_api() -> None:
    policy, quota = ranges(PolicyChange), ranges(QuotaSetting)

    assert (policy["quantum_s"].least, policy["quantum_s"].most) == (0.001, 86_400.0)
    assert policy["quantum_tokens"].is_whole
    assert (quota["min_nice"].least, quota["min_nice"].most) == (-20, 0)
    assert "budget_per_day" not in quota  # money is no number of a form


def test_nothing_that_may_be_set_is_left_out() -> None:
    assert tuple(POLICIES) == POLICY_NAMES
    assert tuple(LIMITS) == LIMIT_NAMES
