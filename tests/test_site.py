"""The built site: links and anchors, alternative texts, and what a browser shows.

``CETL_SITE`` names the folder that ``sphinx-build -b html`` wrote.
"""

import json
import os
import re
import shutil
import threading
import tomllib
from collections import defaultdict
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from avalanche_cetl.demo.report import write_report

SITE = Path(os.environ.get("CETL_SITE") or "no site")
ROOT = Path(__file__).parents[1]
DEMO = ROOT / "benchmarks" / "results" / "demo"
pytestmark = pytest.mark.slow
of_the_site = pytest.mark.skipif(not SITE.is_dir(), reason="CETL_SITE names no built site")
SCROLLS = "pst-scrollable-table-container"
NO_END = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source"}
WIDTHS = (390, 1400)


class Page(HTMLParser):
    """What a page has: anchors, links, pictures without a text, tables that cannot scroll."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.mute, self.fixed = set(), set(), [], []
        self._open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        self.links |= {given[name] for name in ("href", "src") if given.get(name)}
        if tag == "img" and not (given.get("alt") or "").strip():
            self.mute.append(given.get("src"))
        classes = given.get("class") or ""
        # The pages of the index are laid out in tables of their own.
        around = [classes, *(outer for _, outer in self._open)]
        if tag == "table" and not any({SCROLLS, "indextable"} & set(c.split()) for c in around):
            self.fixed.append(classes or "a table")
        if tag not in NO_END:
            self._open.append((tag, classes))

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass


@cache
def pages():
    """Return the pages of the site by their path."""
    files = sorted(SITE.rglob("*.html"))
    assert files, f"no page in {SITE}"
    return {
        file.relative_to(SITE).as_posix(): Page(file.read_text(encoding="utf-8"))
        for file in files
        if "_static" not in file.parts
    }


@of_the_site
def test_local_links_and_anchors_lead_somewhere():
    dead = []
    for place, page in pages().items():
        for link in page.links:
            whole = urlsplit(urljoin(f"site:///{place}", link))
            if whole.scheme != "site":
                continue
            target = unquote(whole.path).lstrip("/") or "index.html"
            if not (SITE / target).is_file():
                dead.append(f"{place}: {link}")
            elif (
                whole.fragment
                and target in pages()
                and unquote(whole.fragment) not in pages()[target].anchors
            ):
                dead.append(f"{place}: {link} has no such anchor")
    assert not dead, "\n".join(dead)


@of_the_site
@pytest.mark.parametrize(
    "what", ["mute", "fixed"], ids=["pictures_without_a_text", "tables_that_cannot_scroll"]
)
def test_no_page_has(what):
    found = {place: getattr(page, what) for place, page in pages().items() if getattr(page, what)}
    assert not found, found


@of_the_site
def test_objects_of_other_packages_lead_to_the_listed_addresses_and_no_other():
    text = (ROOT / "docs" / "elsewhere.txt").read_text(encoding="utf-8")
    listed = dict(line.split() for line in text.splitlines() if line and line[0] != "#")
    linked = {
        link
        for place, page in pages().items()
        if place.startswith("reference/generated/")
        for link in page.links
        if link.startswith("http") and "doi.org" not in link
    }
    assert linked == set(listed.values()) and all(p.startswith("https://") for p in linked)


@of_the_site
def test_no_tutorial_prints_a_progress_bar():
    tutorials = sorted((SITE / "auto_gallery").glob("*.html"))
    assert tutorials and not [
        page.name for page in tutorials if re.search(r"(it|img)/s\]", page.read_text("utf-8"))
    ]


@of_the_site
def test_links_that_need_an_address_are_there_where_it_is_known():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    known = bool(tomllib.loads(text)["tool"]["avalanche-cetl"]["repository"])
    links = {link for page in pages().values() for link in page.links}
    assert known == any("/edit/main/docs/" in link for link in links)
    assert known or not any("colab.research" in link for link in links)
    assert (SITE / "_images" / "default.png").is_file()  # which previews of pages show


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    """Serve the site; return its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs the program chromium")
    with api.sync_playwright() as started:
        running = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


# Text that a reader cannot reach: beside the window, or behind an edge that does not scroll.
CUT = """async () => {
  for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
  await new Promise(done => setTimeout(done, 50));
  const wide = document.documentElement.clientWidth, found = [];
  const name = e => e.tagName.toLowerCase() + '.' + [...e.classList].join('.') + ': ';
  if (document.documentElement.scrollWidth > wide + 1) found.push('the page scrolls sideways');
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode, own = text.parentElement;
    if (!text.data.trim()) continue;
    if (own.closest('pre, dialog, script, style, noscript, .visually-hidden')) continue;
    if (!own.checkVisibility({visibilityProperty: true})) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    const box = range.getBoundingClientRect();
    if (box.width === 0 || box.height === 0) continue;
    let right = wide, left = 0, scrolls = false;
    for (let e = own; e && e !== document.body; e = e.parentElement) {
      const style = getComputedStyle(e);
      if (style.position === 'fixed') break;
      if (style.overflowX === 'visible') continue;
      const edge = e.getBoundingClientRect();
      if (style.overflowX === 'auto' || style.overflowX === 'scroll') {
        if (e.matches('.bd-sidebar-primary, .bd-sidebar-secondary, .bd-sidebar-secondary *')
            && e.scrollWidth > e.clientWidth + 1) {
          found.push('cut sidebar ' + name(e) + text.data.trim().slice(0, 60));
        }
        scrolls = edge.left > -1 && edge.right < wide + 1;
        if (scrolls) break;
      } else {
        right = Math.min(right, edge.right);
        left = Math.max(left, edge.left);
      }
    }
    if (!scrolls && (box.right > right + 1.5 || box.left < left - 1.5)) {
      found.push('cut text ' + name(own) + text.data.trim().slice(0, 60));
    }
  }
  for (const box of document.querySelectorAll('.SCROLLS, pre')) {
    if (!box.clientWidth || box.scrollWidth < box.clientWidth + 2) continue;
    const style = getComputedStyle(box);
    if (!['auto', 'scroll'].includes(style.overflowX)) found.push('cut: ' + name(box));
    if (style.maskImage === 'none') found.push('nothing shows that it scrolls: ' + name(box));
  }
  return [...new Set(found)];
}""".replace("SCROLLS", SCROLLS)


@of_the_site
@pytest.mark.timeout(1800)
def test_every_page_can_be_read_at_every_width(browser, address):
    faults = unreadable(browser, {place: address + place for place in pages()})
    assert not faults, "\n".join(faults)


@pytest.mark.skipif(not DEMO.is_dir(), reason="the result files are in the repository")
def test_the_report_of_the_demo_can_be_read_at_every_width(browser, tmp_path):
    results = json.loads((DEMO / "seed-0.json").read_text())
    for picture in DEMO.glob("*.png"):
        shutil.copy(picture, tmp_path)
    report = write_report(results, tmp_path)
    text = report.read_text(encoding="utf-8")
    assert not Page(text).mute and "://" not in text
    assert not (faults := unreadable(browser, {"report": report.as_uri()})), "\n".join(faults)


def unreadable(browser, addresses):
    """Return what cannot be read on pages, by name and address, at every width; and errors."""
    found = defaultdict(list)
    tab = browser.new_page()
    tab.set_default_timeout(120_000)  # of milliseconds; loaded machines are slow
    place = None
    tab.on(
        "console",
        lambda m: found[place].append(f"{m.text} {m.location}") if m.type == "error" else None,
    )
    tab.on("pageerror", lambda problem: found[place].append(str(problem)))
    for place, address in addresses.items():
        tab.goto(address, wait_until="domcontentloaded")
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 900})
            found[place] += [f"{width} px: {fault}" for fault in tab.evaluate(CUT)]
    tab.close()
    return [f"{place}: {fault}" for place, here in found.items() for fault in here]
