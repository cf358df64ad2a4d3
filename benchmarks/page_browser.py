"""The page in headless Chromium: how soon the last row is shown, what following costs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct
from playwright.sync_api import BrowserContext, sync_playwright

from aios_kernel_api.page.login import COOKIE
from benchmarks.scale.report import quantiles
from tests.page_scene import chromium

MARK = "--aios-page-benchmark"
LOADS = 5
SETTLES_S = 2.0  # what comes first is loading, not following
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Since the navigation began: all rows come with the page, and stand there two frames after it.
SHOWN = """() => new Promise((shown) => {
  const frame = (then) => requestAnimationFrame(then);
  const two = () => frame(() => frame(() => shown(performance.now())));
  if (document.readyState === "complete") two();
  else addEventListener("load", two);
})"""


class Opened(Struct, frozen=True):
    """A view in a browser."""

    view: str
    rows: int
    shown_ms: float  # p50
    longest_ms: float
    api: float  # per cent of a processor while it is followed, less what is used without
    chromium: float  # of all its processes


def opened_views(
    url: str,
    token: str,
    views: Sequence[str],
    cpu_of_api: Callable[[float], float],
    follow_s: float,
    say: Callable[[Opened], None],
) -> list[Opened]:
    """Open each view, then follow it for a while; `cpu_of_api` waits so long and tells."""
    path = chromium()
    if path is None:
        raise SystemExit("no Chromium is installed: `apt-get install chromium` brings one")
    found = []
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", MARK]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        context = browser.new_context(viewport={"width": 1280, "height": 844})
        context.add_cookies([{"name": COOKIE, "value": token, "url": url}])
        quiet = cpu_of_api(follow_s)
        for view in views:
            found.append(_opened(context, url, view, cpu_of_api, follow_s, quiet))
            say(found[-1])
        browser.close()
    return found


def _opened(
    context: BrowserContext,
    url: str,
    view: str,
    cpu_of_api: Callable[[float], float],
    follow_s: float,
    quiet: float,
) -> Opened:
    times = []
    for _ in range(LOADS):
        page = context.new_page()
        page.goto(f"{url}{view}", wait_until="commit")
        times.append(float(page.evaluate(SHOWN)))
        page.close()
    page = context.new_page()
    page.goto(f"{url}{view}")
    rows = page.locator("main tbody tr").count()
    time.sleep(SETTLES_S)
    before_s, began_s = _cpu_of_chromium_s(), time.monotonic()
    api = cpu_of_api(follow_s)
    used = (_cpu_of_chromium_s() - before_s) / (time.monotonic() - began_s)
    page.close()
    shown = quantiles(times)
    return Opened(
        view,
        rows,
        round(shown.p50, 1),
        round(shown.longest, 1),
        round(max(0.0, api - quiet), 1),
        round(100 * used, 1),
    )


def _cpu_of_chromium_s() -> float:
    """Return the processor time of the browser of this benchmark, with all below it."""
    parents: dict[int, int] = {}
    times: dict[int, int] = {}
    marked = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        pid = int(folder.name)
        parents[pid], times[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
        if MARK.encode() in words:
            marked.add(pid)
    return (
        sum(ticks for pid, ticks in times.items() if _is_below(pid, marked, parents)) / TICKS_PER_S
    )


def _is_below(pid: int, marked: set[int], parents: dict[int, int]) -> bool:
    while pid in parents:
        if pid in marked:
            return True
        pid = parents[pid]
    return False
