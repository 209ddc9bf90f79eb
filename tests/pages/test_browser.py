"""A browser shows the site: nothing overflows, fails or leaves the machine, and the search works from disk."""

import pytest
from browser import CHROMIUM, Browser

PAGES = ("index.html", "methods/canon.html", "hook.html", "api/advantages.html")
WITH_EQUATIONS = ("methods/canon.html", "methods/group_relative.html", "methods/opo.html", "theory.html")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_without_errors_or_requests(site, browser, page, width, dark):
    browser.open((site / page).as_uri(), width=width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.body.dataset.mdColorScheme") == ("slate" if dark else "default")
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.parametrize("page", WITH_EQUATIONS)
def test_equations_are_rendered(site, browser, page):
    browser.open((site / page).as_uri())
    marked = browser.evaluate("document.querySelectorAll('.arithmatex').length")
    assert marked > 0
    assert (
        browser.evaluate("document.querySelectorAll('.arithmatex > .katex, .arithmatex > .katex-display').length")
        == marked
    )
    assert browser.errors == []


def test_the_search_finds_a_method_from_disk(site, browser):
    browser.open((site / "index.html").as_uri())
    browser.evaluate("document.querySelector('[for=__search]').click()")
    browser.evaluate(
        "(field => { field.focus(); field.value = 'clip_cov'; "
        "field.dispatchEvent(new Event('input', {bubbles: true})); "
        "field.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true})) })"
        "(document.querySelector('.md-search__input'))"
    )
    browser.wait_for("document.querySelectorAll('.md-search-result__item').length > 0")
    assert "clip_cov" in browser.evaluate("document.querySelector('.md-search-result__list').innerText")
