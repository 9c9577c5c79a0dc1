"""The site in a real browser: navigation, search, light and dark, and a phone's width."""

import json

import pytest

PHONE, DESK = 390, 1280


@pytest.fixture
def click(browser):
    """Return a function that clicks what a selector finds, and waits for the page that follows."""

    def click(selector):
        browser.run(f"document.querySelector({json.dumps(selector)}).click()")
        browser.settle()

    return click


def wait_for(browser, script):
    """Wait until a piece of JavaScript is true."""
    browser.run(
        f"new Promise((done, fail) => {{ const end = Date.now() + 60000; (function look() {{ "
        f"if ({script}) done(1); else if (Date.now() > end) fail('not true'); else setTimeout(look, 50) }})() }})"
    )


def requested_elsewhere(browser):
    """Return what was fetched from anywhere but the disk and the page itself."""
    sent = [one["params"]["request"]["url"] for one in browser.events if one["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(("file:", "data:", "blob:"))]


def test_a_reader_clicks_from_the_home_page_through_the_navigation_to_a_name(site, browser, click):
    browser.open(site / "index.html", DESK)
    assert browser.run("document.querySelector('h1').textContent").startswith("deform-attn")
    click(".sidebar-tree a[href='reference/api.html']")
    wait_for(browser, "document.title.startsWith('Python API')")
    click("article a[href='functions.html']")
    wait_for(browser, "document.title.startsWith('Functions') && document.readyState == 'complete'")
    assert browser.run("document.getElementById('deform_attn.deformable_attention') !== null")
    assert requested_elsewhere(browser) == []


def test_a_search_finds_the_message_that_a_reader_sees(site, browser):
    browser.open(site / "index.html", DESK)
    browser.run("document.querySelector('.sidebar-search').value = 'im2col_step'")
    browser.run("document.querySelector('.sidebar-search-container').submit()")
    wait_for(browser, "document.querySelectorAll('#search-results li a').length > 0")
    found = browser.run("[...document.querySelectorAll('#search-results li a')].map((a) => a.getAttribute('href'))")
    assert any(address.startswith("help/faq.html") for address in found)
    assert requested_elsewhere(browser) == []


def test_the_page_is_dark_where_the_reader_has_it_dark(site, browser):
    brightness = []
    for dark in (False, True):
        browser.open(site / "concepts" / "how-it-works.html", DESK, dark=dark)
        colour = browser.run("getComputedStyle(document.body).backgroundColor")
        brightness.append(sum(int(number) for number in colour.strip("rgba()").split(",")[:3]))
    assert brightness[0] > 600 > 200 > brightness[1]


def test_no_page_is_wider_than_a_phone(site, browser):
    wide = {}
    for page in sorted(site.rglob("*.html")):
        browser.open(page, PHONE, touch=True)
        width = browser.run("document.documentElement.scrollWidth")
        if width > PHONE:
            wide[str(page.relative_to(site))] = width
    assert wide == {}
