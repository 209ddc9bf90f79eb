"""The site builds without warnings, works without a network, and its reference has every public name."""

import importlib
import pkgutil
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import canon_trl

ROOT = Path(__file__).parents[2]
LOADED = {("script", "src"), ("link", "href"), ("img", "src"), ("source", "src"), ("iframe", "src")}


class Page(HTMLParser):
    """The anchors, links, loaded files and text of a page, without code listings."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.text = ""
        self.listings = 0
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.listings += tag == "pre"
        self.anchors |= {given["id"]} if given.get("id") else set()
        for name in ("href", "src"):
            if given.get(name):
                self.links.add(given[name])
                if (tag, name) in LOADED and given.get("rel") not in ("next", "prev", "canonical"):
                    self.loaded.add(given[name])

    def handle_endtag(self, tag: str) -> None:
        self.listings -= tag == "pre"

    def handle_data(self, data: str) -> None:
        if not self.listings:
            self.text += data


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def public_objects() -> dict[str, Any]:
    """Return the objects in `__all__` of the package and its modules, by full name."""
    modules = [canon_trl.__name__, *(m.name for m in pkgutil.walk_packages(canon_trl.__path__, "canon_trl."))]
    modules.remove("canon_trl.rewards")  # raises an error that names its successor
    loaded = [importlib.import_module(name) for name in modules]
    return {f"{m.__name__}.{name}": getattr(m, name) for m in loaded for name in getattr(m, "__all__", ())}


def test_every_public_name_is_in_the_reference(pages):
    """An object needs an entry under one of its import paths."""
    anchors = {anchor for path, page in pages.items() if path.parent.name == "api" for anchor in page.anchors}
    objects = public_objects()
    described = [id(each) for name, each in objects.items() if name in anchors]
    missing = {name for name, each in objects.items() if id(each) not in described}
    assert missing == {"canon_trl.__version__"}


def test_every_public_function_and_class_has_a_docstring():
    own = {name: each for name, each in public_objects().items() if getattr(each, "__module__", "")[:9] == "canon_trl"}
    assert "canon_trl.CANONTrainer" in own
    assert {name for name, each in own.items() if callable(each) and not each.__doc__} == set()


def test_the_markup_of_docstrings_is_rendered(pages):
    for path, page in pages.items():
        if path.parent.name == "api":
            assert not re.search(r"\[`?~|\[!NOTE\]|> Parameters that|\*optional\*|\]\[canon_trl", page.text), path.name


def test_the_reference_lists_no_class_attributes_and_one_return_value(site):
    """Fields are in the signature and among the parameters; a return value may take several lines."""
    sections = []
    for path in (site / "api").glob("*.html"):
        text = path.read_text()
        assert "doc-label-class-attribute" not in text, path.name
        sections += re.findall(r"Returns:</span></p>\s*<ul>(.*?)</ul>", text, flags=re.DOTALL)
    assert sections and all(section.count('<li class="doc-section-item') == 1 for section in sections)


def test_the_equations_fit_the_width_of_a_page():
    """80 characters fit next to the navigation; longer lines need scrolling."""
    for path in (ROOT / "docs" / "methods").glob("*.md"):
        for equations in re.findall(r"^```text\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE):
            assert max(map(len, equations.splitlines())) <= 80, path.name


def test_a_browser_loads_nothing_from_other_hosts(site, pages):
    loaded = {link for page in pages.values() for link in page.loaded}
    assert {link for link in loaded if urlsplit(link).netloc} == set()
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.findall(r"url\(['\"]?(?:https?:)?//[^)]*", styles)


def test_every_link_has_a_target(site, pages):
    missing = set()
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links begin at the root of the server
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            fragment = unquote(parts.fragment)
            if not target.exists() or (fragment and target in pages and fragment not in pages[target].anchors):
                missing.add((str(path.relative_to(site)), link))
    assert missing == set()


def test_linked_files_outside_docs_are_on_the_site(site):
    """These are Markdown, code, a notebook and a folder."""
    for path in ("tests/golden/index.html", "canon_trl/advantages/canon.py.html", "canon_trl/recipes.html"):
        assert (site / "repository" / path).exists()
    assert "canon_metric" in (site / "repository" / "examples" / "canon_quickstart.ipynb.html").read_text()
    listed = Page(site / "repository" / "canon_trl" / "recipes.html").text
    assert {path.name for path in (ROOT / "canon_trl" / "recipes").glob("*.yaml")} <= set(listed.split())
