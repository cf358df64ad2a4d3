"""The text of a page of HTML, as a person would read it, and where its links lead."""

import signal
from html.parser import HTMLParser
from urllib.parse import urljoin

from aios_workers.modules.tool.kernel_tools.wrong import TooLong

MOST_LINKS = 200
_SKIPPED = frozenset({"script", "style", "noscript", "template", "svg", "iframe", "object", "head"})
_BLOCKS = frozenset(
    {
        *("address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption"),
        *("figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li"),
        *("main", "nav", "ol", "p", "pre", "section", "table", "tr", "ul", "option", "title"),
    }
)


def read_page(html: str, base: str, limit_s: float) -> "HtmlText":
    """Return what there is to read of a page, at an address.

    Raises:
        TooLong: The parser takes time that grows with the square of what nobody has closed.
    """

    def too_long(*_: object) -> None:
        raise TooLong("url", f"its HTML could not be read within {limit_s:g} s: it is broken")

    page = HtmlText(base)
    signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, limit_s, 1.0)
    try:
        page.feed(html)
        page.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return page


class HtmlText(HTMLParser):
    """Reads a page; `text`, `title` and `links` are what it has found."""

    def __init__(self, base: str) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.links: list[dict[str, str]] = []
        self._base = base
        self._parts: list[str] = []
        self._skipping: list[str] = []
        self._in_title = False
        self._raw = 0  # within so many `pre`

    @property
    def text(self) -> str:
        """The text: a line for each block, no empty lines one after the other."""
        lines = (line.rstrip() for line in "".join(self._parts).split("\n"))
        kept: list[str] = []
        for line in lines:
            if line or (kept and kept[-1]):
                kept.append(line)
        return "\n".join(kept).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take what begins."""
        if tag == "title" and not self.title:
            self._in_title = True
        elif tag == "body":
            self._skipping.clear()  # a head that nobody has closed
        elif tag in _SKIPPED:
            self._skipping.append(tag)
        elif not self._skipping:
            self._begin(tag, dict(attrs))

    def _begin(self, tag: str, attributes: dict[str, str | None]) -> None:
        if tag in _BLOCKS:
            self._parts.append("\n- " if tag == "li" else "\n")
        elif tag in ("td", "th"):
            self._parts.append("\t")
        elif tag == "img" and (told := attributes.get("alt")):
            self._parts.append(f"[{told}]")
        self._raw += tag == "pre"
        address = attributes.get("href")
        if tag == "a" and address and len(self.links) < MOST_LINKS:
            try:
                self.links.append({"url": urljoin(self._base, address), "text": ""})
            except ValueError:
                return  # it is none

    def handle_endtag(self, tag: str) -> None:
        """Take what ends."""
        if tag == "title":
            self._in_title = False
        elif self._skipping:
            if tag == self._skipping[-1]:
                self._skipping.pop()
        elif tag in _BLOCKS:
            self._parts.append("\n")
            self._raw = max(0, self._raw - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        """Take text."""
        if self._in_title:
            self.title = f"{self.title}{data}".strip()[:500]
        elif not self._skipping:
            text = data if self._raw else _in_a_line(data)
            if text == " " and (not self._parts or self._parts[-1].endswith(("\n", " "))):
                return
            self._parts.append(text)
            if self.links and self.links[-1]["text"] == "":
                self.links[-1]["text"] = text.strip()[:200]


def _in_a_line(data: str) -> str:
    words = " ".join(data.split())
    before = " " if data[:1].isspace() else ""
    after = " " if data[-1:].isspace() and words else ""
    return f"{before}{words}{after}"
