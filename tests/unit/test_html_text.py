"""What is told of a page: the text that a person reads, its title, its links."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_workers.modules.tool.kernel_tools.http_fetch.html_text import HtmlText, read_page
from aios_workers.modules.tool.kernel_tools.wrong import TooLong


def read(html: str, limit_s: float = 20.0) -> HtmlText:
    return read_page(html, "https://example.org/a/b", limit_s)


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>one<p>two", "one\ntwo"),
        ("<h1>A</h1>\n  <p>b  c\n d</p>", "A\n\nb c d"),
        ("<ul><li>x</li><li>y</li></ul>", "- x\n\n- y"),
        ("a<script>if (a<b) alert('<p>')</script>b", "ab"),
        ("<style>p { }</style><p>x", "x"),
        ("<head><title>T</title><meta charset=utf-8><body>x", "x"),
        ("<pre>  a\n    b</pre>", "a\n    b"),
        ("<table><tr><td>1<td>2<tr><td>3</table>", "1\t2\n\t3"),
        ("a <b>bold</b> word &amp; more&nbsp;", "a bold word & more"),
        ("<img alt='a cat'>", "[a cat]"),
        ("no html at all", "no html at all"),
        ("", ""),
    ],
)
def test_the_text_is_what_a_person_reads(html: str, text: str) -> None:
    assert read(html).text.replace("\t", "\t").strip() == text.strip()


def test_title_and_links() -> None:
    page = read("<title> A page </title><a href='../c'>see <b>c</b></a><a href='//x.org/'>x</a>")
    assert page.title == "A page"
    assert page.links == [
        {"url": "https://example.org/c", "text": "see"},
        {"url": "https://x.org/", "text": "x"},
    ]


@given(st.text(alphabet="<>/!-ap&;'\"= \nscript", max_size=300))
def test_any_text_is_read(html: str) -> None:
    assert "\n\n\n" not in read(html).text


@pytest.mark.parametrize("part", ["<div>", "<", "<script>", "&amp", "<p>x"])
def test_a_long_page_takes_little(part: str) -> None:
    began = time.process_time()
    read(part * 30_000)
    assert time.process_time() - began < 10.0


@pytest.mark.parametrize("part", ["<!--", "<a href='"])
def test_what_is_never_closed_is_given_up(part: str) -> None:
    with pytest.raises(TooLong, match="it is broken"):
        read(part * 30_000, limit_s=0.5)
