"""Looks at the built documentation in a browser: every page, wide and narrow, light and dark.

``python tools/check_site.py docs/_build/html --pictures out/site`` opens each page in Chromium and
fails if a page is wider than its window, if a link inside the site leads nowhere, or if the page
reports an error. The pictures are for people to look at.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import pathlib
import shutil
import sys
import threading
from urllib.parse import unquote, urldefrag, urljoin

from playwright.sync_api import Browser, sync_playwright

WIDTHS = {"desktop": 1280, "phone": 390}
SCHEMES = ("light", "dark")
TOO_WIDE = """() => {
    const width = document.documentElement.clientWidth;
    return document.documentElement.scrollWidth > width + 1
        ? document.documentElement.scrollWidth - width : 0;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and does not write a line for each."""

    def log_message(self, *_: object) -> None:
        """Writes nothing."""


def broken_links(
    links: list[str], address: str, root: str, site: pathlib.Path, anchors: dict[str, set[str]]
) -> list[str]:
    """Returns those of a page's links that lead to nothing in the site."""
    broken = []
    for link in links:
        where, anchor = urldefrag(urljoin(address, link))
        if not where.startswith(root):
            continue  # somebody else's site
        known = where in anchors or (site / unquote(where.removeprefix(root))).is_file()
        if not known or (anchor and where in anchors and unquote(anchor) not in anchors[where]):
            broken.append(link)
    return broken


def look(
    browser: Browser, root: str, site: pathlib.Path, pictures: pathlib.Path | None
) -> list[str]:
    """Opens all pages in all forms; returns what is wrong with them, one line each."""
    faults: list[str] = []
    anchors: dict[str, set[str]] = {}
    found = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    pages = {name.removesuffix(".html"): root + name for name in found}
    for form, width in WIDTHS.items():
        for scheme in SCHEMES:
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme
            )
            page = context.new_page()
            page.on("pageerror", lambda error: faults.append(f"script: {error}"))
            for name, address in pages.items():
                page.goto(address)
                if (excess := page.evaluate(TOO_WIDE)) > 0:
                    faults.append(f"{name}, {form}, {scheme}: {excess} pixels wider than a window")
                if address not in anchors:
                    anchors[address] = set(
                        page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
                    )
                if pictures is not None:
                    file = pictures / f"{name.replace('/', '.')}.{form}.{scheme}.png"
                    page.screenshot(path=file)
            context.close()
    page = browser.new_page()
    for name, address in pages.items():
        page.goto(address)
        links = page.eval_on_selector_all("a[href]", "all => all.map(a => a.getAttribute('href'))")
        broken = broken_links(links, address, root, site, anchors)
        faults += [f"{name}: leads nowhere: {link}" for link in broken]
    sys.stdout.write(f"{len(pages)} pages\n")
    return faults if pages else ["no page was found"]


def main() -> int:
    """Reads the command line and looks; returns 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=pathlib.Path)
    parser.add_argument("--pictures", type=pathlib.Path)
    options = parser.parse_args()
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(Quiet, directory=str(options.site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}/"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        faults = look(browser, root, options.site, options.pictures)
        browser.close()
    server.shutdown()
    sys.stdout.write("".join(f"{fault}\n" for fault in faults))
    sys.stdout.write(f"{len(faults)} faults\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
