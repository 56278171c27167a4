"""The site of the documentation builds without a warning, loads nothing from elsewhere, and fits a phone."""

from __future__ import annotations

import functools
import http.server
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import ENVIRONMENT

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**ENVIRONMENT, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site):
    pages = [*site.rglob("*.html")]
    assert len(pages) > 20
    for page in pages:
        text = page.read_text()
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]* src="([^"]*)"|<link (?!rel="canonical")[^>]*href="([^"]*)"', text
        )
        assert not [address for pair in loaded for address in pair if address.startswith(("http", "//"))], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )['\"]?(?:https?:)?//", sheet.read_text()), sheet


@pytest.mark.slow
def test_the_api_page_has_formulas_examples_and_signatures(site):
    page = (site / "api/index.html").read_text()
    assert page.count("<math") > 50
    assert "$" not in re.sub(r"<(pre|code|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"<p>(&gt;){3}|<blockquote>", page)
    for text in ("bnsmooth_cli.landscape", "Parameters:", "Returns:", "Raises:"):
        assert text in page
    assert re.search(r'<span class="n">objective</span>.*?<span class="kc">None</span>', page, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1400])
def test_no_page_is_wider_than_its_window(site, browser, width):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        page = browser.new_page(viewport={"width": width, "height": 900})
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        for path in sorted(site.rglob("index.html")):
            page.goto(address + str(path.parent.relative_to(site)))
            wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wider <= 0, path.relative_to(site)
        server.shutdown()
    assert all(url.startswith(address) or url.startswith("data:") for url in requests)
