"""The site in a real browser: navigation, search, light and dark, and a phone's width."""

import json

PHONE, DESK = 390, 1280


def click(browser, selector):
    """Click what a selector finds."""
    browser.run(f"document.querySelector({json.dumps(selector)}).click()")


def requested_elsewhere(browser):
    """Return what was fetched from anywhere but the disk and the page itself."""
    sent = [one["params"]["request"]["url"] for one in browser.events if one["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith(("file:", "data:", "blob:"))]


def test_a_reader_clicks_from_the_home_page_through_the_navigation_to_a_name(site, browser):
    browser.open(site / "index.html", DESK)
    assert browser.run("document.querySelector('h1').textContent").startswith("deform-attn")
    click(browser, ".sidebar-tree a[href='reference/api.html']")
    browser.until("document.title.startsWith('Python API') && document.readyState == 'complete'")
    click(browser, "article a[href='functions.html']")
    browser.until("document.title.startsWith('Functions') && document.readyState == 'complete'")
    assert browser.run("document.getElementById('deform_attn.deformable_attention') !== null")
    assert requested_elsewhere(browser) == []


def test_a_search_finds_the_message_that_a_reader_sees(site, browser):
    browser.open(site / "index.html", DESK)
    browser.run("document.querySelector('.sidebar-search').value = 'im2col_step'")
    browser.run("document.querySelector('.sidebar-search-container').submit()")
    found = "[...document.querySelectorAll('#search-results li a')].map((a) => a.getAttribute('href'))"
    browser.until(f"{found}.some((address) => address.startsWith('help/faq.html'))")
    assert requested_elsewhere(browser) == []


def test_a_reader_clicks_from_the_gallery_to_the_live_page_and_points_at_its_picture(site, browser):
    browser.open(site / "index.html", DESK)
    click(browser, ".sidebar-tree a[href='gallery.html']")
    browser.until("document.title.startsWith('Gallery') && document.readyState == 'complete'")
    click(browser, "article a[href='_static/explore-digits.html']")
    browser.until("document.getElementById('image') !== null && document.readyState == 'complete'")
    browser.settle()
    left, top, width, height = browser.run(
        "(() => { const r = document.getElementById('image').getBoundingClientRect();"
        " return [r.x, r.y, r.width, r.height]; })()"
    )
    browser.move(left + width / 2, top + height / 2)
    browser.until("document.querySelectorAll('#points .point').length > 0")
    assert requested_elsewhere(browser) == []


def test_every_picture_of_the_gallery_is_loaded_and_fits_a_phone(site, browser):
    browser.open(site / "gallery.html", PHONE, touch=True)
    widths = browser.run(
        "(async () => { const all = [...document.querySelectorAll('article img')];"
        " for (const one of all) one.loading = 'eager';"
        " await Promise.all(all.map((one) => one.decode()));"
        " return all.map((one) => [one.naturalWidth, one.getBoundingClientRect().right]); })()"
    )
    assert len(widths) >= 8
    assert all(natural > PHONE and right <= PHONE for natural, right in widths)


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
