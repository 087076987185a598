"""The site: built without a warning, every page in its navigation, every link resolves, nothing from elsewhere."""

from __future__ import annotations

import functools
import html.parser
import http.server
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse

import pytest
import yaml

from tests.documents import ROOT
from tests.support import browser


def navigation() -> set[str]:
    """Files that mkdocs.yml puts into the menu."""

    def walk(entry) -> set[str]:
        if isinstance(entry, str):
            return {entry}
        return set().union(*(walk(part) for part in (entry.values() if isinstance(entry, dict) else entry)))

    return walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])


def test_every_page_is_in_the_navigation():
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert navigation() == pages, "mkdocs.yml names other pages than docs/ holds"


def test_the_api_pages_name_modules_that_exist():
    named = set()
    for path in (ROOT / "docs" / "api").glob("*.md"):
        named |= set(re.findall(r"^::: (\S+)$", path.read_text(), re.MULTILINE))
    assert len(named) > 40
    for name in named:
        base = ROOT / name.replace(".", "/")
        home = name.rpartition(".")[0].replace(".", "/")
        inside = f"{home}.py" if (ROOT / f"{home}.py").is_file() else f"{home}/__init__.py"
        if not base.with_suffix(".py").is_file():
            code = (ROOT / inside).read_text()
            assert re.search(rf"^(class|def) {name.rpartition('.')[2]}\b", code, re.MULTILINE), name


def test_nothing_is_fetched_from_elsewhere():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False and "extra_javascript" not in config
    assert all("://" not in sheet for sheet in config["extra_css"])


class Page(html.parser.HTMLParser):
    """What a built page links to, loads, and can be linked at."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self.links.add(values["href"])
        if tag in ("script", "img") and values.get("src"):
            self.loaded.add(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.add(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    """The built site, from a copy of what it is made of."""
    for module in ("zensical", "mkdocstrings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module} (requirements-docs.txt)")
    copy = tmp_path_factory.mktemp("site")
    for name in ("docs", "pfcn_jax"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, copy / name)
    ran = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=copy, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said[-3000:]
    assert "griffe" not in said and "arning" not in said, said[-3000:]
    return copy / "site"


@pytest.mark.slow
def test_links_of_the_built_pages_resolve(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) == len(navigation())
    for path, page in pages.items():
        where = path.relative_to(site)
        for target in page.links | page.loaded:
            parts = urllib.parse.urlsplit(target)
            if parts.scheme:
                assert parts.scheme in ("https", "mailto") and target not in page.loaded, f"{where}: {target}"
                continue
            file = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            file = file / "index.html" if file.is_dir() else file
            assert file.is_file(), f"{where}: {target}"
            if parts.fragment and file in pages:
                assert urllib.parse.unquote(parts.fragment) in pages[file].anchors, f"{where}: {target}"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.slow
@pytest.mark.skipif(browser.find_programs() is None, reason="needs chromium and chromedriver (chromium-driver)")
def test_a_browser_asks_nobody_else(site, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        home = f"http://127.0.0.1:{server.server_port}/"
        with browser.browsing(tmp_path / "profile") as page:
            for name in ("index.html", "api/panoptic.html"):
                page.open(home + name)
                page.wait("document.querySelector('.md-search__button')")  # the script has run
                asked = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
                assert len(asked) > 3 and all(address.startswith((home, "data:")) for address in asked), asked
                assert page.run("return getComputedStyle(document.querySelector('.md-header')).position") == "sticky"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_the_api_is_written_out(site):
    text = (site / "api" / "panoptic.html").read_text()
    assert 'id="pfcn_jax.panoptic.fusion.fuse_things"' in text and "cosine similarity" in text
    assert 'id="pfcn_jax.load"' in (site / "api" / "index.html").read_text()
    assert "0.1.0 (unreleased)" in (site / "changelog.html").read_text()
